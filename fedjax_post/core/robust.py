"""Robust aggregates: limit how far a minority of hostile clients can move the result.

    with_aggregate(fed_avg(...), coordinate_median())

They work with every algorithm whose server takes one mean value. For the factors of an
adapter use the rules of `adapters.robust`, which compare products. Each present client counts
1 whatever its weight, unless the table or a docstring states otherwise; a client of weight 0
(padding, dropped) does not count. With n clients present:

| rule | hostile clients that it tolerates | memory |
| --- | --- | --- |
| coordinate_median | fewer than n / 2 | the cohort |
| trimmed_mean(t) | at most t n | the cohort |
| krum(f), multi_krum(f, m) | f, if n >= 2 f + 3 | the cohort |
| geometric_median | less than half of the weight | the cohort |
| norm_bounded(c, inner) | limits each client to a norm of c | that of `inner` |

They are valid at any scale of float32 (`core.norms`): lengths are compared rather than their
squares, and no constant here depends on the scale of the values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.aggregates import column, present, stack, weighted_mean, weighted_sum
from fedjax_post.core.algorithm import Aggregate, PyTree
from fedjax_post.core.norms import limit_norm, norm

UNIT = 2.0**20  # of distances, so that none between finite values overflows


def coordinate_median() -> Aggregate:
    """Returns the median of each coordinate (Yin et al., ICML 2018, arXiv:1803.01498, Option I).

    >>> import jax.numpy as jnp
    >>> from fedjax_post.core import coordinate_median
    >>> median = coordinate_median()
    >>> values = {"x": jnp.array([[1.0], [2.0], [1e9]])}  # the last client is hostile
    >>> total = median.add(median.init({"x": jnp.zeros(1)}, 3), values, jnp.ones(3))
    >>> print(median.finish(total)["x"])
    [2.]
    """
    return _per_coordinate(median_cut)


def trimmed_mean(fraction: float) -> Aggregate:
    """Returns the mean of each coordinate without its `floor(fraction n)` least and greatest.

    Yin et al., ICML 2018, arXiv:1803.01498, Option II. Fraction 0 is the mean.

    Raises:
      ValueError: if `fraction` is outside [0, 0.5).
    """
    return _per_coordinate(trimmed_cut(fraction))


def krum(num_hostile: int) -> Aggregate:
    """Returns the single value that is closest to its n - f - 2 nearest other values.

    Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017, section 4.

    Args:
      num_hostile: f, the assumed number of hostile clients in a cohort.

    Raises:
      ValueError: if `num_hostile` is negative.
    """
    return multi_krum(num_hostile, 1)


def multi_krum(num_hostile: int, num_kept: int) -> Aggregate:
    """Returns the mean of the `num_kept` values with the least Krum scores, or of all if fewer.

    Args:
      num_hostile: as in `krum`.
      num_kept: m, at least 1.

    Raises:
      ValueError: if `num_hostile` is negative or `num_kept` is not positive.
    """
    check_krum(num_hostile, num_kept)

    def combine(values, weights):
        chosen = least_krum_scores(_distances(values), weights > 0, num_hostile, num_kept)
        return _mean_of(values, chosen)

    return _of_all(combine)


def least_krum_scores(
    distances: jax.Array, present: jax.Array, num_hostile: int, num_kept: int
) -> jax.Array:
    """Returns which present clients have the `num_kept` least Krum scores, `[clients]`, bool.

    Args:
      distances: `[clients, clients]`; the diagonal is ignored.
      present: `[clients]`, bool.
      num_hostile: f, as in `krum`.
      num_kept: m, as in `multi_krum`.
    """
    distances = jnp.where(present[None] & present[:, None], distances, jnp.inf)
    distances = jnp.where(jnp.eye(len(present), dtype=bool), jnp.inf, distances)
    near = jnp.arange(len(present)) < jnp.maximum(present.sum() - num_hostile - 2, 1)
    # the root of the sum of squares sorts like the sum itself and does not overflow
    scores = jax.vmap(norm)(jnp.where(near[None], jnp.sort(distances, 1), 0))
    # present before absent clients, even if every score has overflowed
    scores = jnp.where(present, jnp.nan_to_num(scores), jnp.inf)
    return (jnp.argsort(jnp.argsort(scores)) < num_kept) & present


def geometric_median(*, num_steps: int = 32, smoothing: float = 1e-6) -> Aggregate:
    """Returns the point with the least weighted sum of distances to the clients' values.

    Pillutla et al., "Robust Aggregation for Federated Learning", 2019, arXiv:1912.13445,
    Algorithm 2 (smoothed Weiszfeld), started from the weighted median of each coordinate.
    Clients count by their weights. Deviation: the smoothing is relative to the clients'
    distances, so that the result does not depend on the scale of the values.

    Args:
      num_steps: Weiszfeld steps; the paper takes few because each costs a round there.
      smoothing: least distance in a denominator, relative to the weighted median of the
        clients' distances to the point; positive.

    Raises:
      ValueError: if `num_steps` or `smoothing` is not positive.
    """
    check_weiszfeld(num_steps, smoothing)

    def combine(values, weights):
        def step(_, point):
            return _mean_of(
                values, weiszfeld_weights(_distances_to(values, point), weights, smoothing)
            )

        start = jax.tree.map(lambda v: weighted_median(v, column(weights, v)), values)
        return jax.lax.fori_loop(0, num_steps, step, start)

    return _of_all(combine)


def weiszfeld_weights(distances: jax.Array, weights: jax.Array, smoothing: float) -> jax.Array:
    """Returns Weiszfeld weights `[clients]`: weights divided by distances, up to a factor.

    The factor keeps them at most as large as the weights.

    Args:
      distances: `[clients]`, to a point; a client at infinite distance does not count.
      weights: `[clients]`, 0 for the absent.
      smoothing: as in `geometric_median`.
    """
    least = smoothing * weighted_median(distances, weights)
    least = jnp.maximum(least, jnp.finfo(jnp.float32).tiny)
    return weights * (least / jnp.maximum(distances, least))


def weighted_median(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns each coordinate's least value up to which at least half of the weight lies.

    Args:
      values: `[clients, ...]`.
      weights: with as many axes as `values`, 0 for the absent.
    """
    order = jnp.argsort(values, 0)
    reached = jnp.cumsum(jnp.take_along_axis(weights, order, 0, mode="clip"), 0)
    middle = jnp.argmax(reached >= reached[-1:] / 2, 0)[None]
    return jnp.take_along_axis(values, jnp.take_along_axis(order, middle, 0), 0)[0]


def norm_bounded(max_norm: float, inner: Aggregate | None = None) -> Aggregate:
    """Returns an aggregate that scales every value to a global norm of at most `max_norm`.

    Sun et al., "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963.
    Unlike `clip`, which honest clients apply, the server does this.

    Args:
      max_norm: the largest norm of a value that is not scaled down.
      inner: the aggregate of the scaled values; None is `weighted_mean()`.

    Raises:
      ValueError: if `max_norm` is not positive.
    """
    check_norm(max_norm)
    inner = inner or weighted_mean()

    def add(total, values, weights):
        values = jax.tree.map(lambda v: present(v, weights), values)
        return inner.add(total, jax.vmap(lambda v: limit_norm(v, max_norm))(values), weights)

    return inner._replace(add=add, scales=True, sums=False)


def _of_all(combine: Callable) -> Aggregate:
    """Returns an aggregate by `combine(values[clients, ...], weights[clients])`.

    It is zero if no client is present.
    """
    everyone = stack()

    def finish(total):
        values, weights = everyone.finish(total)
        values = jax.tree.map(lambda v: v.astype(jnp.float32), values)
        nobody = ~(weights > 0).any()
        return jax.tree.map(lambda v: jnp.where(nobody, 0, v), combine(values, weights))

    return everyone._replace(finish=finish, kind="value")


def median_cut(count: np.ndarray) -> np.ndarray:
    """Returns how many least and greatest values of `count` the median leaves out."""
    return (count - 1) // 2


def trimmed_cut(fraction: float) -> Callable:
    """Returns a function from a count to how many values `trimmed_mean` cuts at each end.

    Raises:
      ValueError: if `fraction` is outside [0, 0.5).
    """
    if not 0 <= fraction < 0.5:
        raise ValueError(f"fraction must be in [0, 0.5), got {fraction}; for more, use the median")
    # the factor compensates rounding where fraction n is a whole number
    return lambda count: np.floor(fraction * count * (1 + 1e-12)).astype(np.int32)


def check_krum(num_hostile: int, num_kept: int) -> None:
    """Raises ValueError if an argument of `multi_krum` is out of range."""
    if num_hostile < 0 or num_kept < 1:
        raise ValueError(
            f"num_hostile must not be negative and num_kept at least 1, got {num_hostile} "
            f"and {num_kept}"
        )


def check_weiszfeld(num_steps: int, smoothing: float) -> None:
    """Raises ValueError if an argument of `geometric_median` is not positive."""
    if num_steps < 1 or not smoothing > 0:
        raise ValueError(
            f"num_steps and smoothing must be positive, got {num_steps} and {smoothing}"
        )


def check_norm(max_norm: float) -> None:
    """Raises ValueError if a bound is not positive."""
    if isinstance(max_norm, int | float) and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}; inf means no bound")


def _per_coordinate(trim: Callable) -> Aggregate:
    return _of_all(sorted_mean(trim))


def sorted_mean(trim: Callable) -> Callable:
    """Returns a function that averages each coordinate without its least and greatest values.

    It takes values `[clients, ...]` and weights `[clients]`, where a positive weight means
    present, and leaves out `trim(n)` values at each end if n clients are present.
    """

    def combine(values, weights):
        count = (weights > 0).sum()
        # computed on the host for every possible count, as float32 could miss whole numbers
        cut = jnp.asarray(trim(np.arange(len(weights) + 1)), jnp.int32)[count]
        place = jnp.arange(len(weights))
        inner = (place >= cut) & (place < count - cut)

        def leaf(v):
            ordered = jnp.sort(jnp.where(column(weights > 0, v), v, jnp.inf), 0)
            # divide first: the sum of two values may overflow although their mean does not
            return jnp.where(column(inner, v), ordered / jnp.maximum(inner.sum(), 1), 0).sum(0)

        return jax.tree.map(leaf, values)

    return combine


def _mean_of(values: PyTree, weights: jax.Array) -> PyTree:
    share = weights / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda v: weighted_sum(share, v), values)


def _distances(values: PyTree) -> jax.Array:
    """Returns distances `[clients, clients]` in `UNIT`s, as norms of differences of values."""
    rows = jnp.arange(len(jax.tree.leaves(values)[0]))
    return jax.lax.map(lambda i: _distances_to(values, jax.tree.map(lambda v: v[i], values)), rows)


def _distances_to(values: PyTree, point: PyTree) -> jax.Array:
    """Returns distances `[clients]` of the values to a point, over all leaves, in `UNIT`s."""
    apart = lambda value: jax.tree.map(lambda v, p: v / UNIT - p / UNIT, value, point)
    return jax.vmap(lambda value: norm(apart(value)))(values)
