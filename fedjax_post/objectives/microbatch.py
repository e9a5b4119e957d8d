"""Gradient accumulation: the loss of a batch and its gradient, a few rows at a time.

The activations of one part of a batch are in memory at once, in place of those of the whole
batch. The loss is the mean over all that the batch counts (tokens, pairs or answers), not the
mean over its parts, so that the result is that of the whole batch up to rounding.

| | the whole batch | in parts |
| --- | --- | --- |
| loss, metrics, gradient | | equal up to rounding, except for dropout, drawn anew for each part |
| activations in memory | B rows of each client | B / parts rows of each client |
| also in memory | | one more tree like the parameters |
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.custom_derivatives import SymbolicZero

PyTree = Any


def in_parts(loss_fn: Callable, count_fn: Callable, *, num_parts: int) -> Callable:
    """Returns a loss that computes the parts of a batch one after another.

    Where a gradient is needed, that of each part is computed with its loss, so that nothing is
    computed twice and no part's activations are kept.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`; the loss and the metrics are means
        over what `count_fn` counts.
      count_fn: `(batch) -> ()` float32, such as the number of response tokens.
      num_parts: number of parts of equal size; it divides the number of rows.

    Returns:
      A function like `loss_fn`, differentiable with respect to `params`.

    Raises:
      ValueError: by the returned function, if `num_parts` does not divide the number of rows.

    Example:
      >>> mean = lambda params, model, batch, key: ((params * batch).mean(), {})
      >>> loss_fn = in_parts(mean, lambda batch: jnp.float32(batch.size), num_parts=2)
      >>> rows = jnp.array([1.0, 2.0, 3.0, 6.0])
      >>> print(jax.grad(loss_fn, has_aux=True)(1.0, None, rows, None)[0])
      3.0
    """
    if num_parts == 1:
        return loss_fn

    @jax.custom_jvp
    def in_turn(params, model, batch, key):
        return _sum_of_parts(loss_fn, count_fn, num_parts, params, model, batch, key)

    @partial(in_turn.defjvp, symbolic_zeros=True)
    def in_turn_jvp(primals, tangents):
        with_gradient = jax.value_and_grad(loss_fn, has_aux=True)
        value, gradient = _sum_of_parts(with_gradient, count_fn, num_parts, *primals)
        slopes = jax.tree.map(_slope, gradient, tangents[0])
        slope = sum(jax.tree.leaves(slopes), jnp.zeros((), jnp.float32))
        return value, (slope, optax.tree.zeros_like(value[1]))

    return in_turn


def _sum_of_parts(fn, count_fn, num_parts: int, params, model, batch, key) -> PyTree:
    """Returns the mean of `fn(params, model, part, key)` over parts, weighted by their counts."""
    parts = jax.tree.map(partial(_split, num_parts=num_parts), batch)
    counts = jax.vmap(count_fn)(parts)
    weights = counts / jnp.maximum(counts.sum(), 1)

    def value_of(i):
        part = jax.tree.map(lambda leaf: leaf[i], parts)
        part_key = None if key is None else jax.random.fold_in(key, i)
        return optax.tree.scale(weights[i], fn(params, model, part, part_key))

    like = jax.eval_shape(value_of, 0)
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    add = lambda total, i: (optax.tree.add(total, value_of(i)), None)
    return jax.lax.scan(add, start, jnp.arange(num_parts))[0]


def _split(leaf: jax.Array, num_parts: int) -> jax.Array:
    if leaf.shape[0] % num_parts:
        raise ValueError(f"{leaf.shape[0]} rows are not divided by num_parts={num_parts}")
    return jnp.reshape(leaf, (num_parts, -1, *leaf.shape[1:]))


def _slope(gradient: jax.Array, tangent: Any) -> jax.Array:
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros((), jnp.float32)
    return jnp.vdot(gradient, tangent).astype(jnp.float32)
