"""What is known of each seed of a pool of directions, and how often it is to be drawn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tally(NamedTuple):
    """Sums for each seed, `[num_seeds]`, float32; of one visit, or of all of them."""

    sums: jax.Array  # of -eta s, the steps along its direction
    sizes: jax.Array  # of min(|s|, clip)
    counts: jax.Array  # of draws


def empty_tally(num_seeds: int) -> Tally:
    """Returns a tally in which no seed was drawn."""
    return Tally(*jnp.zeros((3, num_seeds)))


def mean_sizes(tally: Tally) -> jax.Array:
    """Returns m_j, `[num_seeds]`: the mean size of each seed's slopes; 0 if it was never drawn."""
    sizes, counts = tally.sizes, tally.counts
    return jnp.where(counts > 0, sizes / jnp.where(counts > 0, counts, 1), 0)


def draw_logits(sizes: jax.Array) -> jax.Array:
    """Returns the logits of drawing each seed: the sizes m_j scaled to [0, 1]."""
    low, high = sizes.min(), sizes.max()
    return (sizes - low) / jnp.where(high > low, high - low, 1)
