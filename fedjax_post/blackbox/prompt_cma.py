"""The search for a soft prompt by CMA-ES on clients, which FedBPT and FedAvg-BBT share.

A prompt is p_0 + A z (see `soft_prompt`). The server holds a distribution N(m, sigma^2 C) over
z; a client continues the search from it on its own rows.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.blackbox import cma, fitness, soft_prompt
from fedjax_post.core.algorithm import Downlink, PyTree, sums_of
from fedjax_post.core.world import LossFn


class Shared(NamedTuple):
    """What the server holds; only the distribution of its search is sent."""

    start: PyTree  # p_0, set up with the model
    search: cma.Search


class Sent(NamedTuple):
    """What goes down, float32."""

    mean: jax.Array  # [d]
    sigma: jax.Array  # ()
    cov: jax.Array  # [d (d + 1) / 2], the lower triangle; [0] if C is not learned


class Replica(NamedTuple):
    """What every client holds."""

    start: PyTree  # p_0
    projection: jax.Array  # [D, d]: A, where D is the size of p_0
    search: cma.Search


class Settings(NamedTuple):
    """The settings of a client's search; arguments of `fed_bpt` and `fed_avg_bbt`."""

    num_points: int  # lambda, points of a generation
    generations: int  # I, generations of a visit
    mask_rate: float  # share of a question's tokens that are replaced, in [0, 1)
    vocab_size: int  # token ids to replace them from
    learn_cov: bool  # whether C is adapted


def check_settings(settings: Settings, search_dim: int, search_sigma: float) -> None:
    """Checks the settings of a search.

    Args:
      settings: of a client's search.
      search_dim: d, numbers that are searched.
      search_sigma: sigma at the start.

    Raises:
      ValueError: if a setting is out of its range, naming the argument.
    """
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


def start_search(params: PyTree, search_dim: int, search_sigma: float) -> Shared:
    """Returns what the server begins with: a prompt p_0, and N(0, sigma^2 I) around it.

    Args:
      params: p_0.
      search_dim: d, numbers that are searched.
      search_sigma: sigma at the start.
    """
    return Shared(params, cma.init(jnp.zeros(search_dim), search_sigma))


def send_search(*, learn_cov: bool) -> Downlink:
    """Returns a downlink that sends the distribution of a search, and none of its other state.

    Args:
      learn_cov: whether C is sent; without, clients take the identity. C hardly changes where d
        is large, since its learning rates are of order 1 / d^2.
    """

    def init(shared):
        projection = soft_prompt.random_projection(shared.start, shared.search.mean.size)
        return Replica(shared.start, projection, shared.search)

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
        return replica._replace(search=cma.init_from(sent.mean, sent.sigma, cov))

    return Downlink(init, encode, receive)


def prompt_at(replica: Replica, z: jax.Array) -> PyTree:
    """Returns the prompt p_0 + A z, shaped like p_0."""
    return soft_prompt.project(replica.start, replica.projection, z)


def deploy(model: PyTree, replica: Replica, state: PyTree = None) -> tuple[PyTree, PyTree]:
    """Returns the model and the prompt at the mean of the search.

    Args:
      model: the frozen model.
      replica: what a client holds.
      state: not used; clients keep no state.
    """
    del state
    return model, prompt_at(replica, replica.search.mean)


def local_search(loss_fn: LossFn, settings: Settings) -> Callable:
    """Returns a client's search, `(replica, model, data, ctx) -> (search, F, power, metrics)`.

    F is the fitness of the search's last mean, and power the sum over generations of sigma^2,
    both float32 (). Metrics are those of the last mean, except that the metrics of `SUMMED` are
    sums over everything that was asked.
    """
    fitness_of = partial(
        fitness.fitness_of,
        loss_fn,
        mask_rate=settings.mask_rate,
        vocab_size=settings.vocab_size,
    )

    def search_fn(replica, model, data, ctx):
        key, rows_key = jax.random.split(ctx.key)
        ctx = ctx._replace(key=rows_key)  # the same tokens are replaced for every point

        def evaluate(z):
            return fitness_of(prompt_at(replica, z), model, data, ctx)

        def generation(search, key):
            points = cma.ask(search, key, settings.num_points)
            found, metrics = jax.lax.map(evaluate, points)  # one after another, for hosts
            asked = jax.tree.map(lambda x: x.sum(0), sums_of(metrics))
            moved = cma.tell(search, points, found, learn_cov=settings.learn_cov)
            return moved, (search.sigma**2, asked)

        keys = jax.random.split(key, settings.generations)
        end, (power, asked) = jax.lax.scan(generation, replica.search, keys)
        found, metrics = evaluate(end.mean)
        asked = jax.tree.map(lambda one, all: one + all.sum(0), sums_of(metrics), asked)
        return end, found, power.sum(), metrics | asked

    return search_fn
