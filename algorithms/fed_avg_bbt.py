"""FedAvg-BBT: black-box tuning on clients, whose search distributions are averaged.

The baseline of Sun et al., "FedBPT", ICML 2024, arXiv:2310.01467, section 5.1: clients search
by CMA-ES as in `fed_bpt`, and the server takes the mean, weighted as in FedAvg, of their
means, covariances and step lengths, whatever came of them. Deviation: none known; the paper
gives no more than this. Both ways, the same d + 1 + d (d + 1) / 2 numbers travel.
"""

import jax.numpy as jnp
from fedjax_post.algorithms.fed_bpt import (
    Replica,
    Settings,
    Shared,
    check_settings,
    deploy,
    local_search,
    searched,
)

from fedjax_post.blackbox import cma
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
    """The mean of clients' search distributions.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      search_dim: d, numbers that are searched, at least 1.
      num_points: lambda, points of a client's generation, at least 2.
      generations: I, generations of a visit, at least 1.
      search_sigma: sigma to begin with, positive; at 1 the first prompts vary as p_0 does.
      mask_rate: share of a question's tokens that are replaced in F, in [0, 1); 0: F is the loss.
      vocab_size: token ids to replace them from; needed with mask_rate.
      learn_cov: adapt C and send it; without, C stays the identity.

    Returns:
      An algorithm that needs EMBEDDINGS; clients keep no state and count by the
      examples that they hold.

    Raises:
      ValueError: if a setting is out of its range.
    """
    settings = Settings(num_points, generations, mask_rate, vocab_size, learn_cov)
    check_settings(settings, search_dim, search_sigma)
    search_fn = local_search(loss_fn, settings)
    downlink = searched(learn_cov=learn_cov)

    def update(model, replica, state, data, ctx):
        end, fitness, _, metrics = search_fn(replica, model, data, ctx)
        mean = jnp.where(jnp.isfinite(fitness), end.mean, jnp.nan)  # led nowhere: is dropped
        sent = downlink.encode(Shared(replica.start, end._replace(mean=mean)))
        return algorithm.Upload(sent, local.by_examples(data)), state, metrics

    def serve(sent, state, shared):
        received = downlink.receive(sent, Replica(shared.start, jnp.zeros(()), shared.search))
        return shared._replace(search=received.search), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=downlink,
        init=lambda params: Shared(params, cma.init(jnp.zeros(search_dim), search_sigma)),
        deploy=deploy,
        access={"target": access.Access.EMBEDDINGS},
        value_like=downlink.encode,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.SCALE),
            "a distribution is a place, and no part of another one",
        ),
    )
