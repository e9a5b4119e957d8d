"""Robust aggregates: what a minority of hostile clients cannot move far.

    with_aggregate(fed_avg(...), coordinate_median())

Any algorithm whose server takes one mean value can have any of them; the factors of an
adapter want the rules of `adapters.robust`, which look at products. Each of the
clients present counts 1, whatever its weight, unless said otherwise; a client of
weight 0 (padding, dropped) does not count. With n clients present:

| rule | withstands | costs memory for |
| --- | --- | --- |
| coordinate_median | fewer than n / 2 | the cohort |
| trimmed_mean(t) | at most t n | the cohort |
| krum(f), multi_krum(f, m) | f, if n >= 2 f + 3 | the cohort |
| geometric_median | less than half of the weight | the cohort |
| norm_bounded(c, inner) | moves of at most c each | what `inner` costs |

They hold at any scale of float32 (`core.norms`): lengths are compared, no squares of them, and
no number here has a unit of its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.aggregates import column, present, stack, weighted_mean, weighted_sum
from fedjax_post.core.algorithm import Aggregate, PyTree
from fedjax_post.core.norms import hold, norm

UNIT = 2.0**20  # of distances, so that none between finite values overflows


def coordinate_median() -> Aggregate:
    """The median of each coordinate (Yin et al., ICML 2018, arXiv:1803.01498, Option I)."""
    return _per_coordinate(median_cut)


def trimmed_mean(fraction: float) -> Aggregate:
    """The mean of each coordinate without its `floor(fraction n)` least and greatest.

    Yin et al., ICML 2018, arXiv:1803.01498, Option II. Fraction 0 is the mean.

    Raises:
      ValueError: if `fraction` is outside [0, 0.5).
    """
    return _per_coordinate(trimmed_cut(fraction))


def krum(num_hostile: int) -> Aggregate:
    """The one value that is nearest to its n - f - 2 nearest others.

    Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017, section 4.

    Args:
      num_hostile: f, the hostile clients in a cohort that are reckoned with.

    Raises:
      ValueError: if `num_hostile` is negative.
    """
    return multi_krum(num_hostile, 1)


def multi_krum(num_hostile: int, num_kept: int) -> Aggregate:
    """The mean of the `num_kept` values of the least Krum scores; of all, if fewer are there.

    Args:
      num_hostile: as in `krum`.
      num_kept: m, at least 1.

    Raises:
      ValueError: if `num_hostile` is negative or `num_kept` is not positive.
    """
    check_krum(num_hostile, num_kept)

    def combine(values, weights):
        kept = least_krum_scores(_distances(values), weights > 0, num_hostile, num_kept)
        return _mean_of(values, kept)

    return _of_all(combine)


def least_krum_scores(
    distances: jax.Array, present: jax.Array, num_hostile: int, num_kept: int
) -> jax.Array:
    """Who of those present has one of the `num_kept` least Krum scores, `[clients]`, bool.

    Args:
      distances: `[clients, clients]`; that of a client to itself does not matter.
      present: `[clients]`, bool.
      num_hostile: f, as in `krum`.
      num_kept: m, as in `multi_krum`.
    """
    distances = jnp.where(present[None] & present[:, None], distances, jnp.inf)
    distances = jnp.where(jnp.eye(len(present), dtype=bool), jnp.inf, distances)
    near = jnp.arange(len(present)) < jnp.maximum(present.sum() - num_hostile - 2, 1)
    # the root of the sum of squares, which is in the order of the sum
    scores = jax.vmap(norm)(jnp.where(near[None], jnp.sort(distances, 1), 0))
    # present before absent, even where every score has overflowed or nobody is near
    scores = jnp.where(present, jnp.nan_to_num(scores), jnp.inf)
    return (jnp.argsort(jnp.argsort(scores)) < num_kept) & present


def geometric_median(*, num_steps: int = 32, smoothing: float = 1e-6) -> Aggregate:
    """The point of least weighted sum of distances to the clients' values.

    Pillutla et al., "Robust Aggregation for Federated Learning", 2019,
    arXiv:1912.13445, Algorithm 2 (smoothed Weiszfeld), from the weighted median of each
    coordinate. Clients count by their weights. Deviation: the smoothing is a share of the
    distances that there are, so that values of any size have the same median.

    Args:
      num_steps: Weiszfeld steps; the paper's few are for steps that cost a round each.
      smoothing: least distance that is divided by, over the weighted median of the clients'
        distances to the point; positive.

    Raises:
      ValueError: if `num_steps` or `smoothing` is not positive.
    """
    check_weiszfeld(num_steps, smoothing)

    def combine(values, weights):
        def step(_, point):
            return _mean_of(values, pulls(_distances_to(values, point), weights, smoothing))

        start = jax.tree.map(lambda v: weighted_median(v, column(weights, v)), values)
        return jax.lax.fori_loop(0, num_steps, step, start)

    return _of_all(combine)


def pulls(distances: jax.Array, weights: jax.Array, smoothing: float) -> jax.Array:
    """Weights over distances, `[clients]`, up to a factor: at most the weights themselves.

    Args:
      distances: `[clients]` to a point; inf does not count.
      weights: `[clients]`, 0 for the absent.
      smoothing: as in `geometric_median`.
    """
    least = smoothing * weighted_median(distances, weights)
    least = jnp.maximum(least, jnp.finfo(jnp.float32).tiny)
    return weights * (least / jnp.maximum(distances, least))


def weighted_median(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The least of each coordinate's values up to which half of the weight lies.

    Args:
      values: `[clients, ...]`.
      weights: of as many axes, 0 for the absent.
    """
    order = jnp.argsort(values, 0)
    reached = jnp.cumsum(jnp.take_along_axis(weights, order, 0, mode="clip"), 0)
    middle = jnp.argmax(reached >= reached[-1:] / 2, 0)[None]
    return jnp.take_along_axis(values, jnp.take_along_axis(order, middle, 0), 0)[0]


def norm_bounded(max_norm: float, inner: Aggregate | None = None) -> Aggregate:
    """Scales every value down to a global norm of at most `max_norm`, then aggregates.

    Sun et al., "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963.
    Unlike `clip`, which an honest client applies, this is done by the server.

    Args:
      max_norm: the largest norm of a value that counts in full.
      inner: how the scaled values become one; None is `weighted_mean()`.

    Raises:
      ValueError: if `max_norm` is not positive.
    """
    check_norm(max_norm)
    inner = inner or weighted_mean()

    def add(total, values, weights):
        values = jax.tree.map(lambda v: present(v, weights), values)
        return inner.add(total, jax.vmap(lambda v: hold(v, max_norm))(values), weights)

    return inner._replace(add=add, scales=True, sums=False)


def _of_all(combine: Callable) -> Aggregate:
    """`combine(values[clients, ...], weights[clients])` of the whole cohort; zero of nobody."""
    kept = stack()

    def finish(total):
        values, weights = kept.finish(total)
        values = jax.tree.map(lambda v: v.astype(jnp.float32), values)
        nobody = ~(weights > 0).any()
        return jax.tree.map(lambda v: jnp.where(nobody, 0, v), combine(values, weights))

    return kept._replace(finish=finish, kind="value")


def median_cut(count: np.ndarray) -> np.ndarray:
    """How many least and greatest of `count` leave the median."""
    return (count - 1) // 2


def trimmed_cut(fraction: float) -> Callable:
    """How many least and greatest of a count `trimmed_mean` leaves out."""
    if not 0 <= fraction < 0.5:
        raise ValueError(f"fraction must be in [0, 0.5), got {fraction}; for more, take the median")
    # the small share undoes rounding where fraction n is a whole number
    return lambda count: np.floor(fraction * count * (1 + 1e-12)).astype(np.int32)


def check_krum(num_hostile: int, num_kept: int) -> None:
    """Raises ValueError for numbers that are none."""
    if num_hostile < 0 or num_kept < 1:
        raise ValueError(
            f"num_hostile must not be negative and num_kept at least 1, got {num_hostile} "
            f"and {num_kept}"
        )


def check_weiszfeld(num_steps: int, smoothing: float) -> None:
    """Raises ValueError for settings of `geometric_median` that are not positive."""
    if num_steps < 1 or not smoothing > 0:
        raise ValueError(
            f"num_steps and smoothing must be positive, got {num_steps} and {smoothing}"
        )


def check_norm(max_norm: float) -> None:
    """Raises ValueError for a bound that is not positive."""
    if isinstance(max_norm, int | float) and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}; inf means no bound")


def _per_coordinate(trim: Callable) -> Aggregate:
    return _of_all(sorted_mean(trim))


def sorted_mean(trim: Callable) -> Callable:
    """The mean of each coordinate without its `trim(n)` least and greatest of n present.

    A function of values `[clients, ...]` and weights `[clients]`; a weight above 0 means present.
    """

    def combine(values, weights):
        count = (weights > 0).sum()
        # for every count there may be, on the host: float32 would miss whole numbers
        cut = jnp.asarray(trim(np.arange(len(weights) + 1)), jnp.int32)[count]
        place = jnp.arange(len(weights))
        inner = (place >= cut) & (place < count - cut)

        def leaf(v):
            ordered = jnp.sort(jnp.where(column(weights > 0, v), v, jnp.inf), 0)
            # divided first: a sum of two may overflow where their mean does not
            return jnp.where(column(inner, v), ordered / jnp.maximum(inner.sum(), 1), 0).sum(0)

        return jax.tree.map(leaf, values)

    return combine


def _mean_of(values: PyTree, weights: jax.Array) -> PyTree:
    share = weights / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda v: weighted_sum(share, v), values)


def _distances(values: PyTree) -> jax.Array:
    """Distances `[clients, clients]` in `UNIT`s, by differences: no cancellation."""
    rows = jnp.arange(len(jax.tree.leaves(values)[0]))
    return jax.lax.map(lambda i: _distances_to(values, jax.tree.map(lambda v: v[i], values)), rows)


def _distances_to(values: PyTree, point: PyTree) -> jax.Array:
    """Distances `[clients]` of the values to a point in `UNIT`s, over all leaves."""
    apart = lambda value: jax.tree.map(lambda v, p: v / UNIT - p / UNIT, value, point)
    return jax.vmap(lambda value: norm(apart(value)))(values)
