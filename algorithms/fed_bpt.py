"""FedBPT: soft prompts found by evolution, on forward passes alone.

Sun et al., "FedBPT: Efficient Federated Black-box Prompt Tuning for Large Language Models",
ICML 2024, arXiv:2310.01467, equations 2, 6 and 7; where it leaves something open, the code
in NVIDIA/NVFlare, research/fed-bpt. As in BBT (Sun et al., ICML 2022, arXiv:2201.03514), a
prompt is p_0 + A z: A is random and fixed, and the d numbers z are searched by CMA-ES. A
client runs I generations of lambda points from the server's distribution N(m, sigma^2 C), on

    F(z) = loss / loss over the same rows with some of their tokens replaced by random ones

so that a prompt that answers alike whatever it is asked does not pay. It sends where its
mean ended, F there, and the sum over generations of its sigma_j^2. To the server these ends
are the points of one generation: it ranks them by F and updates its own CMA-ES, with the
length of the step that led to them,

    sigma' = sqrt(mean over the better half of sum_j sigma_j^2 / (lambda / 2))

in the place of sigma; sigma itself then changes by the factor by which sigma' did.

What travels: the paper counts m, "4 KB" for d = 500, but its clients search with C and sigma
as well. Here d + 1 + d (d + 1) / 2 numbers go down (503 KB in float32; the code sends its
whole optimizer) and d + 2 up (2 KB); without `learn_cov`, m and sigma go down (2 KB). C hardly
changes where d is large, since its rates are of order 1 / d^2.

Deviations: F is a ratio of means over all rows of a visit, as in the code; the paper has a
mean of ratios. Each sigma_j^2 is not sent, their sum is. The deviation of the vocabulary's
embeddings, which scales A, is estimated from p_0, since weights are not read. CMA-ES is
without negative weights, which the code has by pycma's default; the code's server makes
parents of all clients, the paper's (and this one) of the better half. The code's bound of
0.5 below sigma has no effect there, and is left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from fedjax_post.blackbox import cma
from fedjax_post.core import access, aggregates, algorithm, local, world


class Shared(NamedTuple):
    """What the server holds; its search's distribution travels."""

    start: algorithm.PyTree  # p_0, set up with the model
    search: cma.Search


class Sent(NamedTuple):
    """What goes down, float32."""

    mean: jax.Array  # [d]
    sigma: jax.Array  # ()
    cov: jax.Array  # [d (d + 1) / 2], the lower triangle; [0] if it is not learned


class Replica(NamedTuple):
    """What every client holds."""

    start: algorithm.PyTree  # p_0
    projection: jax.Array  # [D, d]: A
    search: cma.Search


class Found(NamedTuple):
    """What a client sends, float32."""

    mean: jax.Array  # [d], where its search ended
    fitness: jax.Array  # (), F there
    power: jax.Array  # (), sum over its generations of sigma^2


class Settings(NamedTuple):
    """Of a client's search; the arguments of `fed_bpt`."""

    num_points: int
    generations: int
    mask_rate: float
    vocab_size: int
    learn_cov: bool


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

    A visit asks for each of its rows `generations * num_points + 1` times, and twice that
    with `mask_rate`; all rows of the visit stand behind every F.

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
      An algorithm that needs EMBEDDINGS; clients keep no state and count alike. What is
      deployed is p_0 + A m, shaped like the parameters.

    Raises:
      ValueError: if a setting is out of its range.
    """
    settings = Settings(num_points, generations, mask_rate, vocab_size, learn_cov)
    check_settings(settings, search_dim, search_sigma)
    search_fn = local_search(loss_fn, settings)

    def update(model, replica, state, data, ctx):
        end, fitness, power, metrics = search_fn(replica, model, data, ctx)
        found = Found(end.mean, fitness, power)
        return algorithm.Upload(found, local.uniformly(data)), state, metrics

    def serve(value, state, shared):
        found, weights = value
        fitness = jnp.where(weights > 0, found.fitness, jnp.inf)
        step = corrected_sigma(found.power, fitness, num_points)
        moved = cma.tell(
            shared.search._replace(sigma=step), found.mean, fitness, learn_cov=learn_cov
        )
        sigma = shared.search.sigma * moved.sigma / step
        return shared._replace(search=moved._replace(sigma=sigma)), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.stack(),
        downlink=searched(learn_cov=learn_cov),
        init=lambda params: Shared(params, cma.init(jnp.zeros(search_dim), search_sigma)),
        deploy=deploy,
        access={"target": access.Access.EMBEDDINGS},
        value_like=lambda shared: Found(shared.search.mean, *jnp.zeros(2)),
        refuses={
            algorithm.Around.MEMORY: "where a search ended is a place, and no part of another one",
            algorithm.Around.SCALE: "a bound would hold fitness and place together",
            algorithm.Around.STALE: "points are ranked as one generation around one mean",
        },
    )


def searched(*, learn_cov: bool) -> algorithm.Downlink:
    """A downlink that sends a search's distribution; clients have no memory of its moves."""

    def init(shared):
        size, dim = ravel_pytree(shared.start)[0].size, shared.search.mean.size
        drawn = jax.random.normal(jax.random.key(0), (size, dim))
        return Replica(shared.start, scale_of(shared.start, dim) * drawn, shared.search)

    def encode(shared):
        search = shared.search
        rows, columns = jnp.tril_indices(search.mean.size if learn_cov else 0)
        return Sent(search.mean, search.sigma, search.cov[rows, columns])

    def receive(sent, replica):
        dim = sent.mean.size
        if not learn_cov:
            return replica._replace(search=cma.init(sent.mean, sent.sigma))
        lower = jnp.zeros((dim, dim)).at[jnp.tril_indices(dim)].set(sent.cov)
        cov = lower + jnp.tril(lower, -1).T
        return replica._replace(search=cma.around(sent.mean, sent.sigma, cov))

    return algorithm.Downlink(init, encode, receive)


def scale_of(start: algorithm.PyTree, dim: int) -> jax.Array:
    """Deviation of A's entries, so that A z varies like p_0 does, for z of deviation 1.

    BBT's rule, whose alpha is sigma here: CMA-ES does not depend on units, so that BBT's
    division of A by sigma would take back what sigma does. A p_0 without any variation
    counts as having deviation 1.
    """
    deviation = ravel_pytree(start)[0].std()
    return jnp.where(deviation > 0, deviation, 1.0) / dim**0.5


def prompt_at(replica: Replica, z: jax.Array) -> algorithm.PyTree:
    """p_0 + A z, shaped like p_0."""
    start, unravel = ravel_pytree(replica.start)
    with jax.default_matmul_precision("highest"):
        return unravel(start + replica.projection @ z)


def deploy(model: algorithm.PyTree, replica: Replica, state: algorithm.PyTree = None):
    """The prompt at the mean of the search."""
    del state
    return model, prompt_at(replica, replica.search.mean)


def corrected_sigma(power: jax.Array, fitness: jax.Array, num_points: int) -> jax.Array:
    """sigma', the length of the server's step: equation 6.

    Args:
      power: `[clients]`, sums of squared step lengths.
      fitness: `[clients]`, less is better; inf for a client that was not there.
      num_points: lambda.
    """
    half = jnp.maximum(jnp.isfinite(fitness).sum() // 2, 1)
    better = jnp.argsort(jnp.argsort(fitness)) < half
    return jnp.sqrt(jnp.where(better, power, 0).sum() / half / (num_points / 2))


def local_search(loss_fn: world.LossFn, settings: Settings) -> Callable:
    """A client's search: `(replica, model, data, ctx) -> (search, fitness, power, metrics)`.

    The metrics are those of the mean in the end, but for the sums over all that was asked.
    """

    def search_fn(replica, model, data, ctx):
        key, rows_key = jax.random.split(ctx.key)
        ctx = ctx._replace(key=rows_key)  # the same tokens are replaced for every point
        evaluate = lambda z: fitness_of(loss_fn, prompt_at(replica, z), model, data, ctx, settings)

        def generation(search, key):
            points = cma.ask(search, key, settings.num_points)
            fitness, metrics = jax.lax.map(evaluate, points)  # one after another, for hosts
            asked = jax.tree.map(lambda x: x.sum(0), algorithm.sums_of(metrics))
            told = cma.tell(search, points, fitness, learn_cov=settings.learn_cov)
            return told, (search.sigma**2, asked)

        keys = jax.random.split(key, settings.generations)
        end, (power, asked) = jax.lax.scan(generation, replica.search, keys)
        fitness, metrics = evaluate(end.mean)
        asked = jax.tree.map(lambda one, all: one + all.sum(0), algorithm.sums_of(metrics), asked)
        return end, fitness, power.sum(), metrics | asked

    return search_fn


def fitness_of(loss_fn, params, model, data, ctx, settings):
    """F over all rows of a visit, and the metrics there: equation 7 by means."""

    def losses(batch, key):
        loss, metrics = loss_fn(params, model, batch, key)
        if not settings.mask_rate:
            return loss, jnp.ones_like(loss), metrics, algorithm.sums_of(metrics)
        blurred = replace_tokens(batch, key, settings.mask_rate, settings.vocab_size)
        other, more = loss_fn(params, model, blurred, key)
        return (
            loss,
            other,
            metrics,
            optax.tree.add(algorithm.sums_of(metrics), algorithm.sums_of(more)),
        )

    _, total = local.over_steps(lambda _, *args: ((), losses(*args)), (), data, ctx)
    loss, other, metrics, asked = total
    num_steps = jnp.maximum(jnp.asarray(data.step_mask).sum(dtype=jnp.float32), 1)
    tiny = jnp.finfo(other.dtype).tiny
    return loss / jnp.maximum(other, tiny), algorithm.mean_of(metrics, num_steps) | asked


def replace_tokens(
    batch: algorithm.PyTree, key: jax.Array, rate: float, vocab_size: int
) -> algorithm.PyTree:
    """The batch with that share of tokens drawn anew, but for responses and a row's first."""
    tokens = batch["tokens"]
    which, what = jax.random.split(key)
    hit = jax.random.bernoulli(which, rate, tokens.shape) & ~batch["loss_mask"].astype(bool)
    hit = hit & (jnp.arange(tokens.shape[1]) > 0)[None]
    drawn = jax.random.randint(what, tokens.shape, 0, vocab_size, tokens.dtype)
    return {**batch, "tokens": jnp.where(hit, drawn, tokens)}


def check_settings(settings: Settings, search_dim: int, search_sigma: float) -> None:
    """Refuses settings that cannot be, naming the argument."""
    if search_dim < 1 or settings.num_points < 2 or settings.generations < 1:
        raise ValueError(
            "search_dim and generations must be at least 1 and num_points at least 2, got "
            f"{search_dim}, {settings.generations} and {settings.num_points}"
        )
    if isinstance(search_sigma, int | float) and not search_sigma > 0:
        raise ValueError(f"search_sigma must be positive, got {search_sigma}; BBT has 1")
    if not 0 <= settings.mask_rate < 1:
        raise ValueError(f"mask_rate must be in [0, 1), got {settings.mask_rate}; 0 masks nothing")
    if settings.mask_rate and settings.vocab_size < 1:
        raise ValueError(
            f"mask_rate={settings.mask_rate} replaces tokens by others and needs vocab_size; "
            "give the tokenizer's, or mask_rate=0"
        )
