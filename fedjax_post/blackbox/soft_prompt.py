"""Soft prompts that a few numbers describe, as differences from a first prompt p_0.

`project` makes p_0 + A z from numbers z, with a random matrix A that never changes. `prompt_of`
makes p_0 + s U V from a `Generator`, whose factors U and V are trained.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_post.core.algorithm import PyTree


class Generator(NamedTuple):
    """The factors that make one leaf of a prompt of P tokens of D numbers."""

    triggers: jax.Array  # U: [P, R]
    decoder: jax.Array  # V: [R, D]


def random_projection(start: PyTree, dim: int) -> jax.Array:
    """Returns A, float32 `[size of p_0, dim]`, the same for everybody.

    A z varies as p_0 does, for z of deviation 1: the rule of BBT (Sun et al., ICML 2022,
    arXiv:2201.03514), in which alpha is the search's sigma. BBT also divides A by sigma. This
    does not: CMA-ES does not depend on units, so that the division would undo sigma.

    Args:
      start: p_0.
      dim: numbers in z.
    """
    flat = ravel_pytree(start)[0]
    drawn = jax.random.normal(jax.random.key(0), (flat.size, dim))
    return _deviation(flat) / dim**0.5 * drawn


def project(start: PyTree, projection: jax.Array, z: jax.Array) -> PyTree:
    """Returns p_0 + A z, shaped like p_0.

    Args:
      start: p_0.
      projection: A, `[size of p_0, d]`.
      z: `[d]`.
    """
    flat, unravel = ravel_pytree(start)
    with jax.default_matmul_precision("highest"):
        return unravel(flat + projection @ z)


def generators_for(start: PyTree, rank: int) -> list[Generator]:
    """Returns a generator for each leaf of p_0, the same for everybody, whose prompt is p_0."""

    def make(key, leaf):
        size = leaf.shape[-1]
        decoder = jax.random.normal(key, (rank, size)) / rank**0.5
        return Generator(jnp.zeros((leaf.size // size, rank)), decoder)

    leaves = jax.tree.leaves(start)
    return list(map(make, jax.random.split(jax.random.key(0), len(leaves)), leaves))


def prompt_of(start: PyTree, generators: list[Generator]) -> PyTree:
    """Returns p_0 + s U V, shaped like p_0, where s is the deviation of each leaf of p_0."""
    leaves, treedef = jax.tree.flatten(start)

    def add(leaf, generator):
        moved = (generator.triggers @ generator.decoder).reshape(leaf.shape)
        return leaf + _deviation(leaf) * moved

    return jax.tree.unflatten(treedef, map(add, leaves, generators))


def _deviation(values: jax.Array) -> jax.Array:
    """The standard deviation of a prompt's numbers; 1 where they do not vary."""
    deviation = values.std()
    return jnp.where(deviation > 0, deviation, 1.0)
