"""Uplinks that send few bits: stochastic rounding, signs, and randomly chosen entries.

Properties for every floating leaf v of d entries (other leaves are sent unchanged):

| link | mean of the decoded value | mean squared error | norm at most |
| --- | --- | --- | --- |
| quantize, blocks of b, s levels | v | b / (4 s^2) |v|^2 | (1 + sqrt(b) / s) |v| |
| random_k, scaled, d / k >= 1 | v | (d / k - 1) |v|^2 | d / k |v| |
| random_k, not scaled | k / d v | (1 - k / d) |v|^2 | |v| |
| sign | mean |v| sign(v), no noise | |v|^2 - |v|_1^2 / d | |v| |

Decoding to bfloat16 rounds too, so every bound includes a margin for it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core.algorithm import PyTree, Uplink
from fedjax_post.core.norms import is_float, narrow
from fedjax_post.core.uplinks import no_state

_ROUNDING = 1 + 2**-8 + 2**-16  # half a unit in the last place of bfloat16


class Quantized(NamedTuple):
    """One quantized leaf: `codes` times the scale of their block."""

    codes: jax.Array  # [d] int8, or [ceil(d / 2)] uint8 with two entries in each
    scales: jax.Array  # [ceil(d / block_size)], float32: largest magnitude over levels


def quantize(bits: int, *, block_size: int = 128) -> Uplink:
    """Returns a link that rounds each entry at random to one of `2^bits - 1` levels, unbiased.

    Alistarh et al., "QSGD", NeurIPS 2017, arXiv:1610.02132, section 3 with its buckets. The
    scale of a block is its largest magnitude, as in their experiments (from memory; the
    properties above are derived here and tested). A message costs `bits / 8` bytes per entry
    and 4 bytes per block; two int4 codes are packed into a byte.

    >>> import jax
    >>> from fedjax_post.core import num_bytes, quantize
    >>> from fedjax_post.core.uplinks import message_like
    >>> num_bytes(message_like(quantize(4), jax.ShapeDtypeStruct((1024,), "float32")))
    544

    Args:
      bits: 8 or 4, including the sign.
      block_size: entries that share a scale, at least 1; more means fewer bytes and more noise.

    Raises:
      ValueError: if `bits` is neither 4 nor 8, or `block_size` is below 1.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}; sign() sends one bit")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    levels = 2 ** (bits - 1) - 1

    def round_leaf(x, key):
        blocks = _blocks(x.astype(jnp.float32), block_size)
        scales = jnp.abs(blocks).max(1) / levels
        exact = blocks / jnp.where(scales > 0, scales, 1.0)[:, None]
        noise = jax.random.uniform(key, exact.shape)
        codes = jnp.clip(jnp.floor(exact + noise), -levels, levels).astype(jnp.int8)
        codes = codes.ravel()[: x.size]
        return Quantized(codes if bits == 8 else _pack_nibbles(codes + levels), scales)

    def restore(y, message):
        if not isinstance(message, Quantized):
            return message
        codes, scales = message
        if bits == 4:
            codes = _unpack_nibbles(codes, y.size) - levels
        blocks = _blocks(codes.astype(jnp.float32), block_size) * scales[:, None]
        return narrow(blocks.ravel()[: y.size].reshape(y.shape), y.dtype)

    encode = lambda value, replica, state, ctx: (_with_keys(round_leaf, value, ctx.key), state)
    factor = (1 + math.sqrt(block_size) / levels) * _ROUNDING
    return Uplink(no_state, encode, _each(restore), lambda bound: factor * bound)


class Signs(NamedTuple):
    """One leaf as its signs, eight per byte, and its mean magnitude."""

    bits: jax.Array  # [ceil(d / 8)], uint8
    scale: jax.Array  # (), float32


def sign() -> Uplink:
    """Returns a link that sends each entry's sign and each leaf's mean magnitude.

    A message costs 1 bit per entry and 4 bytes per leaf. The link is biased; use it with
    `error_feedback`, which makes it EF-signSGD (Karimireddy et al., ICML 2019,
    arXiv:1901.09847, Algorithm 1). Zero counts as positive.
    """

    def shrink(x, key):
        del key
        return Signs(jnp.packbits(x.ravel() >= 0), jnp.abs(x.astype(jnp.float32)).mean())

    def restore(y, message):
        if not isinstance(message, Signs):
            return message
        positive = jnp.unpackbits(message.bits, count=y.size).reshape(y.shape)
        return narrow(jnp.where(positive, message.scale, -message.scale), y.dtype)

    encode = lambda value, replica, state, ctx: (_with_keys(shrink, value, ctx.key), state)
    return Uplink(no_state, encode, _each(restore), lambda bound: _ROUNDING * bound)


class Drawn(NamedTuple):
    """Some entries of one flattened leaf; the seed determines which."""

    values: jax.Array  # [k]
    seed: jax.Array  # (), uint32


def random_k(fraction: float, *, scaled: bool = True) -> Uplink:
    """Returns a link that sends a random `fraction` of each leaf's entries.

    The server draws the same indices from a seed, so that no index is sent, but 4 bytes of seed
    per leaf. `ceil(fraction * d)` entries are kept.

    Args:
      fraction: share of the entries that is sent, in (0, 1].
      scaled: divide by the share that is sent, which makes the link unbiased. Must be False
        under `error_feedback`, since the error that is fed back would grow.

    Raises:
      ValueError: if `fraction` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    count = lambda x: min(x.size, math.ceil(fraction * x.size))

    def indices(x, seed):
        return jax.random.permutation(jax.random.key(seed), x.size)[: count(x)]

    def keep(x, key):
        seed = jax.random.bits(key, (), jnp.uint32)
        factor = x.size / max(1, count(x)) if scaled else 1.0
        entries = x.ravel()[indices(x, seed)].astype(jnp.float32) * factor
        return Drawn(narrow(entries, x.dtype), seed)

    def fill(y, message):
        if not isinstance(message, Drawn):
            return message
        flat = jnp.zeros(y.size, y.dtype).at[indices(y, message.seed)].set(message.values)
        return flat.reshape(y.shape)

    encode = lambda value, replica, state, ctx: (_with_keys(keep, value, ctx.key), state)
    factor = _ROUNDING / fraction if scaled else 1.0
    return Uplink(no_state, encode, _each(fill), lambda bound: factor * bound)


def _with_keys(fn, tree: PyTree, key: jax.Array) -> PyTree:
    """Returns the tree with `fn(leaf, key)` for every floating leaf, each with another key."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [is_float(x) for x in leaves]
    drawn = [
        fn(x, jax.random.fold_in(key, i)) if floats else x
        for i, (x, floats) in enumerate(zip(leaves, floating, strict=True))
    ]
    return jax.tree.unflatten(structure, drawn)


def _each(restore):
    return lambda message, like: jax.tree.map(restore, like, message)


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """Returns the flattened array as rows `[ceil(d / size), size]`, padded with zeros."""
    return jnp.pad(x.ravel(), (0, -x.size % size)).reshape(-1, size)


def _pack_nibbles(codes: jax.Array) -> jax.Array:
    low, high = _blocks(codes.astype(jnp.uint8), 2).T
    return low | (high << 4)


def _unpack_nibbles(packed: jax.Array, count: int) -> jax.Array:
    both = jnp.stack([packed & 15, packed >> 4], 1)
    return both.ravel()[:count].astype(jnp.int8)
