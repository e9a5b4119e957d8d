"""Masks that hide every upload of a round and cancel in the sum, for the simulator.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
section 4: client u adds to its codes, modulo 2^32, a mask of its own and for every other client v
of the round a mask that both know, with a plus at the lower place and a minus at the higher. In
the sum of all clients the masks of pairs cancel. The server removes the masks of its own of the
clients that are present, and those that the present ones share with the absent ones.

The simulator is one process and derives the seeds of all masks from one key, where a federation
agrees on them by `protocol`. Masks are expanded by jax's threefry, whose keys have 64 bits: enough
that an upload shows nothing to a measurement, too little for an adversary with a budget.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Seat(NamedTuple):
    """Whose masks these are; the server needs it to remove them."""

    round: Any  # (), int32
    place: Any  # (), int32: which client of the round, from 0
    cohort: Any  # (), int32: number of clients of the round


def mask_of(root: jax.Array, seat: Seat, size: int) -> jax.Array:
    """Returns the sum of a client's masks, `[size]` uint32.

    Its time grows with the cohort, so that of a round grows with the square of it.

    Args:
      root: key of all masks of the run.
      seat: of the client.
      size: number of entries.
    """
    own = _expand(root, seat, seat.place, size)

    def add(other, total):
        sign = jnp.sign(other - seat.place).astype(jnp.uint32)  # -1 is 2^32 - 1
        return total + sign * _expand(root, seat, other, size)

    return jax.lax.fori_loop(0, seat.cohort, add, own)


def mask_left(root: jax.Array, seat: Seat, present: jax.Array, size: int) -> jax.Array:
    """Returns the masks that are left in the sum of the present clients, `[size]` uint32.

    Args:
      root: key of all masks of the run.
      seat: of the round; its place does not matter.
      present: `[places]` bool: whose uploads were summed.
      size: number of entries.
    """
    at = lambda place: seat._replace(place=place)

    def of_absent(place, total):
        def add(other, total):
            sign = jnp.sign(place - other) * present[other]
            return total + sign.astype(jnp.uint32) * _expand(root, at(other), place, size)

        return jax.lax.fori_loop(0, seat.cohort, add, total)

    def of_present(place, total):
        return total + _expand(root, at(place), place, size)

    def add(place, total):
        return jax.lax.cond(present[place], of_present, of_absent, place, total)

    return jax.lax.fori_loop(0, seat.cohort, add, jnp.zeros(size, jnp.uint32))


def _expand(root: jax.Array, seat: Seat, other: jax.Array, size: int) -> jax.Array:
    """Returns the mask of a pair of places in a round, or of one place with itself."""
    key = jax.random.fold_in(root, seat.round)
    for place in (jnp.minimum(seat.place, other), jnp.maximum(seat.place, other)):
        key = jax.random.fold_in(key, place)
    return jax.random.bits(key, (size,), jnp.uint32)
