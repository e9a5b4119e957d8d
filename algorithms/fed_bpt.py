"""FedBPT: soft prompts found by evolution, on forward passes alone.

Sun et al., "FedBPT: Efficient Federated Black-box Prompt Tuning for Large Language Models",
ICML 2024, arXiv:2310.01467, equations 2, 6 and 7; where the paper leaves something open, the
code in NVIDIA/NVFlare, research/fed-bpt. A prompt is p_0 + A z, with A random and fixed, and
CMA-ES searches the d numbers z. A client runs I generations of lambda points from the server's
distribution N(m, sigma^2 C), by their fitness

    F(z) = loss / loss over the same rows with some of their tokens replaced by random ones

It sends the mean at which its search ended, F there, and the sum over generations of its
sigma_j^2. To the server these means are one generation of its own CMA-ES, of step length

    sigma' = sqrt(mean over the better half, by F, of sum_j sigma_j^2 / (lambda / 2))

and sigma is multiplied by the factor by which this generation changes sigma'. The paper counts m
alone on the way down, "4 KB" for d = 500, but its clients search with C and sigma as well.

Deviations: F is a ratio of means over all rows of a visit, as in the code; the paper has a mean
of ratios. The sum of the sigma_j^2 is sent, not each of them. The scale of A comes from p_0, not
from the vocabulary's embeddings, since no weights are read. CMA-ES has no negative weights; the
code uses pycma's default, which has them. Parents are the better half of the clients, as in the
paper; in the code, all. Its lower bound of 0.5 on sigma has no effect there and is left out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.blackbox import cma, prompt_cma
from fedjax_post.core import access, aggregates, algorithm, local, world


class Found(NamedTuple):
    """What a client sends, float32."""

    mean: jax.Array  # [d], where its search ended
    fitness: jax.Array  # (), F there
    power: jax.Array  # (), sum over its generations of sigma^2


def fed_bpt(
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
    """Searches a soft prompt by CMA-ES on clients, and by CMA-ES over clients.

    A visit asks for all its rows `generations * num_points + 1` times, twice that with `mask_rate`.

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
      An algorithm that needs EMBEDDINGS and deploys p_0 + A m. d + 1 + d (d + 1) / 2 numbers go
      down (503 KB for d = 500), d + 1 without `learn_cov`; d + 2 go up. Clients keep no state
      and have equal weights.

    Raises:
      ValueError: if a setting is out of its range.
    """
    settings = prompt_cma.Settings(num_points, generations, mask_rate, vocab_size, learn_cov)
    prompt_cma.check_settings(settings, search_dim, search_sigma)
    search_fn = prompt_cma.local_search(loss_fn, settings)

    def update(model, replica, state, data, ctx):
        end, fitness, power, metrics = search_fn(replica, model, data, ctx)
        found = Found(end.mean, fitness, power)
        return algorithm.Upload(found, local.uniformly(data)), state, metrics

    def serve(value, state, shared):
        found, weights = value
        fitness = jnp.where(weights > 0, found.fitness, jnp.inf)
        step = corrected_sigma(found.power, fitness, num_points)
        search, sigma = shared.search._replace(sigma=step), shared.search.sigma
        moved = cma.tell(search, found.mean, fitness, learn_cov=learn_cov)
        return shared._replace(search=moved._replace(sigma=sigma * moved.sigma / step)), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.stack(),
        downlink=prompt_cma.send_search(learn_cov=learn_cov),
        init=lambda params: prompt_cma.start_search(params, search_dim, search_sigma),
        deploy=prompt_cma.deploy,
        access={"target": access.Access.EMBEDDINGS},
        value_like=lambda shared: Found(shared.search.mean, *jnp.zeros(2)),
        refuses={
            algorithm.Around.MEMORY: "the end of a search is a point, not a change of one",
            algorithm.Around.SCALE: "a bound would hold fitness and point together",
            algorithm.Around.STALE: "points are ranked as one generation around one mean",
        },
    )


def corrected_sigma(power: jax.Array, fitness: jax.Array, num_points: int) -> jax.Array:
    """Returns sigma', the length of the server's step, by equation 6.

    Args:
      power: `[clients]`, sums of squared step lengths.
      fitness: `[clients]`, less is better; inf for a client that is absent.
      num_points: lambda.
    """
    half = jnp.maximum(jnp.isfinite(fitness).sum() // 2, 1)
    better = jnp.argsort(jnp.argsort(fitness)) < half
    return jnp.sqrt(jnp.where(better, power, 0).sum() / half / (num_points / 2))
