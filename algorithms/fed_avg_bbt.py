"""FedAvg-BBT: black-box tuning on clients, whose search distributions are averaged.

The baseline of Sun et al., "FedBPT", ICML 2024, arXiv:2310.01467, section 5.1: clients search
by CMA-ES as in `fed_bpt`, and the server takes the mean, weighted as in FedAvg, of their means,
covariances and step lengths, whatever their fitness. Deviations: none known; the paper says no
more than this. The same d + 1 + d (d + 1) / 2 numbers are sent in both directions.
"""

import jax.numpy as jnp

from fedjax_post.blackbox import prompt_cma
from fedjax_post.core import access, aggregates, algorithm, local, world


def fed_avg_bbt(
    loss_fn: world.LossFn,
    *,
    search_dim: int = 500,
    num_points: int = 5,
    generations: int = 8,
    search_sigma: float = 1.0,
    mask_rate: float = 0.0,
    vocab_size: world.VocabSize = 0,
    learn_cov: bool = True,
) -> algorithm.Algorithm:
    """Averages the clients' search distributions.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      search_dim: d, numbers that are searched, at least 1.
      num_points: lambda, points of a client's generation, at least 2.
      generations: I, generations of a visit, at least 1.
      search_sigma: sigma at the start, positive; at 1 the first prompts vary as p_0 does.
      mask_rate: share of a question's tokens that are replaced in F, in [0, 1); 0: F is the loss.
      vocab_size: token ids to replace them from; needed with mask_rate.
      learn_cov: adapt C and send it; without, C stays the identity.

    Returns:
      An algorithm that needs EMBEDDINGS; clients keep no state and are weighted by the number
      of their examples.

    Raises:
      ValueError: if a setting is out of its range.
    """
    settings = prompt_cma.Settings(num_points, generations, mask_rate, vocab_size, learn_cov)
    prompt_cma.check_settings(settings, search_dim, search_sigma)
    search_fn = prompt_cma.local_search(loss_fn, settings)
    downlink = prompt_cma.send_search(learn_cov=learn_cov)

    def update(model, replica, state, data, ctx):
        end, fitness, _, metrics = search_fn(replica, model, data, ctx)
        # the engine drops a client whose upload is not finite
        mean = jnp.where(jnp.isfinite(fitness), end.mean, jnp.nan)
        sent = downlink.encode(prompt_cma.Shared(replica.start, end._replace(mean=mean)))
        return algorithm.Upload(sent, local.by_examples(data)), state, metrics

    def serve(sent, state, shared):
        held = prompt_cma.Replica(shared.start, jnp.zeros(()), shared.search)
        return shared._replace(search=downlink.receive(sent, held).search), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=downlink,
        init=lambda params: prompt_cma.start_search(params, search_dim, search_sigma),
        deploy=prompt_cma.deploy,
        access={"target": access.Access.EMBEDDINGS},
        value_like=downlink.encode,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.SCALE),
            "clients send a distribution, not a change of one",
        ),
    )
