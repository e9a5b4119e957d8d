"""Norms that are correct for every finite float32, and scaling of values to a largest norm.

Squares of float32 overflow above 1.8e19 and vanish below 1e-19, and on a CPU the reciprocal of
a number above 8.5e37 is treated as zero. Lengths are therefore measured in a unit: 2^90 if the
largest entry exceeds 2^40, 2^-90 if it is below 2^-40, else 1. Division by a power of two does
not round, and no unit is so large that its reciprocal is zero.

| value | its norm | scaled to at most c |
| --- | --- | --- |
| finite, norm at most (1 - 1e-5) c | correct up to rounding | unchanged, to the bit |
| finite, longer than that | up to rounding; inf above 3.4e38 | same direction, norm at most c |
| with an infinity or a NaN | not finite | not finite; the engine drops such clients |
"""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
_MARGIN = 1e-5  # covers the rounding of a sum of squares and of a product


def norm(tree: PyTree) -> jax.Array:
    """Returns the Euclidean norm over all floating leaves, () float32; inf if it overflows."""
    length, unit = _length_and_unit(tree)
    return length * unit


def limit_norm(tree: PyTree, max_norm: Any) -> PyTree:
    """Returns the value with its floating leaves scaled down to a norm of at most `max_norm`.

    Args:
      tree: the value, of any floating dtypes; other leaves are unchanged.
      max_norm: c of the table above, positive; inf means no bound.
    """
    length, unit = _length_and_unit(tree)
    limit = (1 - _MARGIN) * max_norm
    is_long = length * unit > limit
    factor = limit / jnp.where(is_long, length, 1.0)

    def leaf(x):
        short = x.astype(jnp.float32) / unit * factor
        return jnp.where(is_long, _towards_zero(short, x.dtype), x) if is_float(x) else x

    return jax.tree.map(leaf, tree)


def narrow(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns numbers rounded to `dtype`: to nearest, but towards zero if they are subnormal.

    The spacing of subnormal numbers is as large as the numbers themselves, so rounding up could
    double a norm.
    """
    if x.dtype == dtype:
        return x
    return jnp.where(jnp.abs(x) < jnp.finfo(dtype).tiny, _towards_zero(x, dtype), x.astype(dtype))


def is_float(x: jax.Array) -> bool:
    """Returns whether a leaf is floating; norms and links ignore other leaves."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def _length_and_unit(tree: PyTree) -> tuple[jax.Array, jax.Array]:
    """Returns the norm in a unit, which is finite for every finite value, and the unit."""
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree) if is_float(x) and x.size]
    if not leaves:
        return jnp.zeros(()), jnp.ones(())
    largest = jnp.stack([jnp.abs(x).max() for x in leaves]).max()
    unit = jnp.where(largest > 2.0**40, 2.0**90, jnp.where(largest < 2.0**-40, 2.0**-90, 1.0))
    return jnp.sqrt(jnp.stack([((x / unit) ** 2).sum() for x in leaves]).sum()), unit


def _towards_zero(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns numbers rounded to the nearest of `dtype` that is not larger in magnitude."""
    near = x.astype(dtype)
    is_longer = jnp.abs(near.astype(jnp.float32)) > jnp.abs(x.astype(jnp.float32))
    return jnp.where(is_longer, jnp.nextafter(near, jnp.zeros((), dtype)), near)
