"""Clients' answers, summed in two halves whose difference shows how much the answers vary."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates
from fedjax_post.core.algorithm import Aggregate, PyTree


class Answer(NamedTuple):
    """What a client sends."""

    gradient: PyTree
    second: jax.Array  # (), uint8: 1 in the second half, 0 in the first


class Gathered(NamedTuple):
    """Sums over the answers of each half."""

    gradient: PyTree  # leaves [2, ...]
    weight: jax.Array  # [2], float32


def no_answers(params: PyTree) -> Gathered:
    """Returns sums of zero, for gradients shaped like `params`."""
    return Gathered(jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params), jnp.zeros(2))


def halves() -> Aggregate:
    """Returns an aggregate that sums `Answer`s by halves, as a `Gathered`."""

    def add(total, answers, weights):
        shares = jnp.stack([weights * (answers.second == half) for half in (0, 1)])
        share = lambda g: aggregates.weighted_sum(shares, aggregates.present(g, weights))
        new = jax.tree.map(share, answers.gradient)
        return optax.tree.add(total, Gathered(new, shares.sum(1)))

    init = lambda like, cohort_size: no_answers(like.gradient)
    return Aggregate(init, add, optax.tree.add, lambda total: total)


def variance(gathered: Gathered) -> jax.Array:
    """Returns the mean over entries of the variance of the two halves' means, float32 ().

    It is inf while one half is empty.
    """
    weight = jnp.where(gathered.weight > 0, gathered.weight, 1)
    means = jax.tree.map(lambda s: jax.vmap(jnp.divide)(s, weight), gathered.gradient)
    squares = optax.tree.norm(jax.tree.map(lambda m: m[0] - m[1], means), squared=True)
    size = sum(leaf[0].size for leaf in jax.tree.leaves(means))
    return jnp.where((gathered.weight > 0).all(), squares / (2 * size), jnp.inf)
