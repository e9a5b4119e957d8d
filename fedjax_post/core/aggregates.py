"""Aggregates: combine the values of a cohort into one, a chunk of clients at a time.

A value of weight 0 (padding, or a dropped client) does not count, even if it is not finite.
Sums use float32 products on every device, whatever its default matrix precision: a value that
was rounded could be longer than the bound that it was clipped to.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax.tree

from fedjax_post.core.algorithm import Aggregate, PyTree


class Sum(NamedTuple):
    """The weighted sum so far; leaves are float32 and shaped like those of one value."""

    value: PyTree
    weight: jax.Array  # (), float32


def weighted_mean() -> Aggregate:
    """Returns the weighted mean of the clients' values; it is zero for an empty cohort.

    >>> import jax.numpy as jnp
    >>> from fedjax_post.core import weighted_mean
    >>> mean = weighted_mean()
    >>> total = mean.init({"x": jnp.zeros(1)}, 3)
    >>> values, weights = {"x": jnp.array([[1.0], [4.0], [9.0]])}, jnp.array([2.0, 1.0, 0.0])
    >>> print(mean.finish(mean.add(total, values, weights))["x"])
    [2.]
    """

    def finish(total):
        scale = jnp.where(total.weight > 0, 1 / total.weight, 0.0)
        return optax.tree.scale(scale, total.value)

    return Aggregate(_no_sum, _add_weighted, optax.tree.add, finish, kind="value", sums=True)


def fixed_mean(count: float) -> Aggregate:
    """Returns the sum of the present clients' values, divided by the constant `count`.

    Every present client counts 1 whatever its weight, so that the presence of one client changes
    the result by at most the norm of its value over `count`.

    Raises:
      ValueError: if `count` is not positive.
    """
    if isinstance(count, int | float) and not count > 0:
        raise ValueError(f"count must be positive, got {count}; give the expected cohort size")

    def add(total, values, weights):
        return _add_weighted(total, values, (weights > 0).astype(jnp.float32))

    finish = lambda total: optax.tree.scale(1 / count, total.value)
    return Aggregate(_no_sum, add, optax.tree.add, finish, fixed=True, kind="value", sums=True)


class Stack(NamedTuple):
    """Every client's value and weight, `[cohort, ...]`; the first `filled` lanes are in use."""

    values: PyTree
    weights: jax.Array  # [cohort], float32
    filled: jax.Array  # (), int32


def stack() -> Aggregate:
    """Returns an aggregate of every value: `(values[cohort, ...], weights[cohort])`.

    It needs memory for the whole cohort and serves rules that a running sum cannot express.
    """

    def init(like, cohort_size):
        buffer = lambda x: jnp.zeros((cohort_size, *x.shape), x.dtype)
        return Stack(jax.tree.map(buffer, like), jnp.zeros(cohort_size), jnp.zeros((), jnp.int32))

    def add(total, values, weights):
        put = lambda b, v: jax.lax.dynamic_update_slice_in_dim(b, v, total.filled, 0)
        values = jax.tree.map(lambda v: present(v, weights), values)
        return Stack(
            jax.tree.map(put, total.values, values),
            put(total.weights, weights),
            total.filled + weights.shape[0],
        )

    def merge(one, other):
        """Returns the lanes of `one`, followed by those of `other`."""
        place = lambda b, o: jnp.where(
            column(jnp.arange(b.shape[0]) < one.filled, b), b, jnp.roll(o, one.filled, 0)
        )
        values = jax.tree.map(place, one.values, other.values)
        return Stack(values, place(one.weights, other.weights), one.filled + other.filled)

    return Aggregate(init, add, merge, lambda total: (total.values, total.weights))


def _no_sum(like: PyTree, cohort_size: int) -> Sum:
    del cohort_size
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
    return Sum(zeros, jnp.zeros(()))


def _add_weighted(total: Sum, values: PyTree, weights: jax.Array) -> Sum:
    def add(s, v):
        return s + weighted_sum(weights, present(v, weights).astype(jnp.float32))

    return Sum(jax.tree.map(add, total.value, values), total.weight + weights.sum())


def present(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns values `[clients, ...]`, set to zero where the weight `[clients]` is not positive."""
    return jnp.where(column(weights > 0, values), values, jnp.zeros((), values.dtype))


def weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Returns sums of values `[clients, ...]` weighted by `[..., clients]`, in full float32."""
    return jnp.tensordot(weights, values, 1, precision="highest")


def column(mask: jax.Array, like: Any) -> jax.Array:
    """Returns a mask or factor `[clients]` with as many axes as `like`, `[clients, ...]`."""
    return mask.reshape(mask.shape[0], *(1,) * (like.ndim - 1))
