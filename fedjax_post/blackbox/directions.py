"""Directions of zeroth-order steps, drawn so that server and clients know the same ones."""

import jax
import jax.numpy as jnp

from fedjax_post.core.algorithm import PyTree
from fedjax_post.core.forward import random_direction


def pool_direction(seed: jax.Array, like: PyTree) -> PyTree:
    """Returns direction z_j of a pool of seeds, for j = `seed`, the same for everybody."""
    return random_direction(jax.random.fold_in(jax.random.key(0), seed), like)


def step_direction(round: jax.Array, step: jax.Array, like: PyTree) -> PyTree:
    """Returns the direction of one step of a round, the same for everybody.

    Args:
      round: int32 (), number of the round.
      step: int32 (), number of the step in it.
      like: a tree of the direction's shape.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), round), step)
    return random_direction(key, like)


def nearest_direction(key: jax.Array, last: PyTree, *, num_candidates: int) -> PyTree:
    """Returns a normal direction: among candidates, the nearest to `last`, tensor by tensor.

    Args:
      key: draws the candidates.
      last: a tree of the direction's shape, to which nearness is measured by the cosine.
      num_candidates: candidates for each tensor, at least 1.
    """
    keys = jax.random.split(key, num_candidates)
    drawn = jax.vmap(lambda k: random_direction(k, last))(keys)

    def nearest(v, g):
        rows = v.reshape(num_candidates, -1)
        return v[jnp.argmax(rows @ g.ravel() / jnp.linalg.norm(rows, axis=1))]

    return jax.tree.map(nearest, drawn, last)
