"""Rotary position embeddings, and the methods of extending them to longer contexts."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_post.model.config import Rope

KINDS = ("default", "linear", "llama3", "yarn")


def frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Returns the angle per token of each rotated pair, and the factor on cos and sin.

    Args:
      rope: the kind of rotary embedding.
      head_dim: width of one head; the first `fraction` of it is rotated.

    Returns:
      Radians per token, float32 `[rotated / 2]`, and the yarn temperature (1 elsewhere).

    Raises:
      ValueError: if `rope.kind` is unknown.
    """
    rotated = int(head_dim * rope.fraction)
    inverse = 1.0 / rope.theta ** (np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if rope.kind == "default":
        return inverse.astype(np.float32), 1.0
    if rope.kind == "linear":
        return (inverse / rope.factor).astype(np.float32), 1.0
    if rope.kind == "llama3":
        return _llama3(rope, inverse).astype(np.float32), 1.0
    if rope.kind == "yarn":
        scale = rope.attention_factor
        if scale is None:
            scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
        return _yarn(rope, inverse, rotated).astype(np.float32), scale
    raise ValueError(f"rope kind must be one of {KINDS}, got {rope.kind!r}")


def _llama3(rope: Rope, inverse: np.ndarray) -> np.ndarray:
    """Returns frequencies of Llama 3.1: low ones divided, high ones kept, others blended."""
    wave = 2 * np.pi / inverse
    turns = rope.original_positions / wave
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * inverse / rope.factor + blend * inverse


def _yarn(rope: Rope, inverse: np.ndarray, rotated: int) -> np.ndarray:
    """Returns frequencies of Peng et al., arXiv:2309.00071: a ramp between kept and divided."""

    def dimension(turns: float) -> float:
        ratio = rope.original_positions / (turns * 2 * math.pi)
        return rotated * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(rotated // 2) - low) / (high - low), 0, 1)
    return inverse / rope.factor * ramp + inverse * (1 - ramp)


def rope_table(
    rope: Rope, head_dim: int, *, positions: Int[Array, "B L"]
) -> Float[Array, "2 B L P"]:
    """Returns cos and sin of every position's angles, float32, for P rotated pairs.

    Args:
      rope: the kind of rotary embedding.
      head_dim: width of one head.
      positions: int32.
    """
    inverse, scale = frequencies(rope, head_dim)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(inverse)[None, None, :]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)]) * scale


def rotate(x: Float[Array, "B L N H"], table: Float[Array, "2 B L P"]) -> Float[Array, "B L N H"]:
    """Returns heads with the first 2 P dimensions rotated; i pairs with i + P (Hugging Face)."""
    pairs = table.shape[-1]
    cos, sin = table[0][:, :, None, :], table[1][:, :, None, :]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :pairs], wide[..., pairs : 2 * pairs], wide[..., 2 * pairs :]
    parts = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)
