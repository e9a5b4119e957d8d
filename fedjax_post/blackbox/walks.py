"""Local walks along known directions, of which the slopes alone have to be sent."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.algorithm import PyTree


class Walk(NamedTuple):
    """A client's walk, as the parameters it reached and as the sums of what it measured."""

    params: PyTree
    sums: PyTree  # of one array [num_directions], or several; float32


def slope_estimate(walk: Walk, index: jax.Array, slope: jax.Array, z: PyTree) -> Walk:
    """Returns the gradient of a walk: the slope along z for `params`, at one index for `sums`.

    Args:
      walk: where the step begins; `sums` is one array `[num_directions]`.
      index: int32 (), which of the directions z is.
      slope: float32 (), the loss's slope along z.
      z: the direction, shaped like `params`.
    """
    return Walk(optax.tree.scale(slope, z), jnp.zeros_like(walk.sums).at[index].set(slope))


def move_along(start: PyTree, sums: jax.Array, direction_fn: Callable) -> PyTree:
    """Returns start + sum_i sums_i z_i, one direction in memory at a time.

    Args:
      start: parameters.
      sums: float32 `[num_directions]`.
      direction_fn: `(i, like) -> z_i`, shaped like `start`.
    """
    add = lambda i, x: optax.tree.add_scale(x, sums[i], direction_fn(i, x))
    return jax.lax.fori_loop(0, sums.shape[0], add, start)
