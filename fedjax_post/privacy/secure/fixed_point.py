"""Fixed-point codes: weighted values as integers modulo 2^32, whose sum cannot overflow.

A client's value v and weight w become `round(w / w_max * v * 2^bits / bound)` for each entry, and
`round(w / w_max * 2^bits)` as one more entry, with w_max a power of two. Sums of codes decode to
the weighted sum and the sum of weights, so that the server divides one by the other once.

| case | treatment |
| --- | --- |
| entries beyond `bound`, weights beyond `max_weight`, NaN | no code: `fits` returns False |
| every entry of `max_clients` clients at `bound` | the sum of codes stays below 2^31 |
| whole weights up to 2^bits | exact |
| the weighted sum of n clients | within n / 2 steps, but for the rounding of float32 |
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core.algorithm import PyTree

_MOST_BITS = 24  # of a float32, so that every code of one client is exact
_TAIL = 12.0  # deviations of noise: beyond with a probability below 1e-32


class FixedPoint(NamedTuple):
    """How values become codes; see the table of the module."""

    bound: float  # largest magnitude of an entry of a value
    max_weight: float  # w_max, a power of two
    max_clients: int  # of one sum
    bits: int  # a code of one client is at most 2^bits

    @property
    def step(self) -> float:
        """Spacing of weighted values."""
        return self.max_weight * self.bound / 2**self.bits


def choose(
    bound: float,
    *,
    max_clients: int,
    max_weight: float = 1.0,
    bits: int | None = None,
    noise: float = 0.0,
) -> FixedPoint:
    """Returns codes that are as fine as the sum of a cohort allows.

    >>> codes = choose(1.0, max_clients=1000)
    >>> codes.bits, codes.step == 2.0**-21
    (21, True)

    Args:
      bound: largest magnitude of an entry of a value, such as the norm that it is clipped to.
      max_clients: largest number of clients in one sum.
      max_weight: largest weight of a client; rounded up to a power of two.
      bits: fractional bits in units of `bound`; None: as many as fit, at most 24.
      noise: deviation of the noise in a sum, in units of `bound`.

    Raises:
      ValueError: for numbers out of range, or so many bits that a sum could overflow.
    """
    for name, value in (("bound", bound), ("max_weight", max_weight)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if max_clients < 1:
        raise ValueError(f"max_clients must be at least 1, got {max_clients}")
    largest = max_clients + _TAIL * noise
    room = min(_MOST_BITS, math.floor(math.log2((2**31 - 1) / largest)))
    if room < 1:
        raise ValueError(
            f"32 bits have no room for sums of {max_clients} clients with noise of {noise:.3g} "
            "times their bound; choose smaller cohorts or less noise"
        )
    if bits is not None and not 1 <= bits <= room:
        raise ValueError(
            f"bits must be from 1 to {room}, got {bits}: sums of {max_clients} clients would "
            "overflow 32 bits, or codes the 24 bits of a float32; give fewer bits, or leave them "
            "out for as many as fit"
        )
    weight = 2.0 ** math.ceil(math.log2(max_weight))
    return FixedPoint(float(bound), weight, max_clients, room if bits is None else bits)


def fits(codes: FixedPoint, value: PyTree, weight: jax.Array) -> jax.Array:
    """Returns whether a value has codes, () bool: finite and within the bounds.

    Args:
      codes: how values become codes.
      value: of one client, floating leaves.
      weight: of the client, ().
    """
    within = [(jnp.abs(x.astype(jnp.float32)) <= codes.bound).all() for x in jax.tree.leaves(value)]
    return jnp.stack([*within, (weight >= 0) & (weight <= codes.max_weight)]).all()


def encode(codes: FixedPoint, value: PyTree, weight: jax.Array) -> tuple[PyTree, jax.Array]:
    """Returns the codes of a weighted value and of its weight, uint32 modulo 2^32.

    Args:
      codes: how values become codes.
      value: of one client, floating leaves; only what `fits` has a meaning.
      weight: of the client, ().
    """
    share = jnp.asarray(weight, jnp.float32) / codes.max_weight
    code = lambda x: jnp.round(share * (x.astype(jnp.float32) / codes.bound) * 2.0**codes.bits)
    modular = lambda x: jnp.nan_to_num(x).astype(jnp.int32).astype(jnp.uint32)
    whole = jnp.round(share * 2.0**codes.bits)
    return jax.tree.map(lambda x: modular(code(x)), value), modular(whole)


def decode(codes: FixedPoint, total: PyTree, weight: jax.Array) -> tuple[PyTree, jax.Array]:
    """Returns the weighted sum and the sum of weights, float32, from sums of codes.

    Args:
      codes: how values became codes.
      total: sums of the codes of values, uint32.
      weight: sum of the codes of weights, () uint32.
    """
    signed = lambda x: jax.lax.bitcast_convert_type(x, jnp.int32).astype(jnp.float32)
    unit = codes.max_weight / 2.0**codes.bits
    return jax.tree.map(lambda x: signed(x) * unit * codes.bound, total), signed(weight) * unit
