"""Norms that are right for every finite float32, and values held within one.

Squares of float32 overflow from 1.8e19 on and vanish below 1e-19, and on a CPU the
reciprocal of what exceeds 8.5e37 counts as zero. So lengths are taken in a unit: 2^90 where
the largest entry exceeds 2^40, 2^-90 where it is below 2^-40, else 1. A power of two
rounds nothing, and no unit is so large that its reciprocal is zero.

| value | its norm | held within c |
| --- | --- | --- |
| finite, norm at most (1 - 1e-5) c | to rounding | as it is, to the bit |
| finite, longer than that | to rounding; inf above 3.4e38 | same direction, norm at most c |
| with an infinity or a NaN | not finite | not finite; the engine drops such clients |
"""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
_MARGIN = 1e-5  # covers the rounding of a sum of squares and of a product


def norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm over all floating leaves, () float32; inf where it exceeds float32."""
    length, unit = _measured(tree)
    return length * unit


def hold(tree: PyTree, max_norm: Any) -> PyTree:
    """The value, its floating leaves scaled down to a norm of at most `max_norm`.

    Args:
      tree: of any floating dtypes; other leaves stay as they are.
      max_norm: c of the table above, positive; inf holds nothing.
    """
    length, unit = _measured(tree)
    limit = (1 - _MARGIN) * max_norm
    is_long = length * unit > limit
    factor = limit / jnp.where(is_long, length, 1.0)

    def leaf(x):
        short = x.astype(jnp.float32) / unit * factor
        return jnp.where(is_long, _towards_zero(short, x.dtype), x) if is_float(x) else x

    return jax.tree.map(leaf, tree)


def narrow(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Numbers as `dtype`, to the nearest, but towards zero below its least normal number.

    There, where a step is as large as the number itself, rounding up could double a norm.
    """
    if x.dtype == dtype:
        return x
    return jnp.where(jnp.abs(x) < jnp.finfo(dtype).tiny, _towards_zero(x, dtype), x.astype(dtype))


def is_float(x: jax.Array) -> bool:
    """Whether norms and links look at a leaf."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def _measured(tree: PyTree) -> tuple[jax.Array, jax.Array]:
    """The norm in a unit, finite for every finite value, and the unit."""
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree) if is_float(x) and x.size]
    if not leaves:
        return jnp.zeros(()), jnp.ones(())
    largest = jnp.stack([jnp.abs(x).max() for x in leaves]).max()
    unit = jnp.where(largest > 2.0**40, 2.0**90, jnp.where(largest < 2.0**-40, 2.0**-90, 1.0))
    return jnp.sqrt(jnp.stack([((x / unit) ** 2).sum() for x in leaves]).sum()), unit


def _towards_zero(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Numbers as the nearest of `dtype` that are not longer."""
    near = x.astype(dtype)
    is_longer = jnp.abs(near.astype(jnp.float32)) > jnp.abs(x.astype(jnp.float32))
    return jnp.where(is_longer, jnp.nextafter(near, jnp.zeros((), dtype)), near)
