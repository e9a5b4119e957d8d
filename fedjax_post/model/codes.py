"""Weights as blocks of codes with one scale per block: 8 bits, or the 4 bits of QLoRA.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023,
arXiv:2305.14314, without its second quantization, that of the scales. A block has 64 weights
along the input axis, or the greatest common divisor of 64 and the size of that axis.

    kind   bytes per weight       share of bfloat16
    int8   1 + 2 / 64             0.516
    nf4    1/2 + 2 / 64           0.266
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

BLOCK = 64
KINDS = ("int8", "nf4")
# Quantiles of a normal variable, scaled to [-1, 1], with an exact 0 (QLoRA, appendix E)
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


@functools.partial(jax.jit, static_argnames=("kind",))
def encode(kernel: Array, kind: str) -> tuple[Array, Array]:
    """Returns the codes and bfloat16 scales of a kernel `[..., in, out]`.

    Codes are int8 `[..., in, out]`, or uint8 `[..., in / 2, out]` with the even
    rows in the low four bits; scales are `[..., in / block, out]`.

    Raises:
      ValueError: if `kind` is unknown, or it is "nf4" and `in` is odd.
    """
    if kind not in KINDS:
        raise ValueError(f"`quantize` must be one of {KINDS}, got {kind!r}")
    size_in, size_out = kernel.shape[-2:]
    block = math.gcd(size_in, BLOCK)
    blocks = kernel.astype(jnp.float32).reshape(
        *kernel.shape[:-2], size_in // block, block, size_out
    )
    top = jnp.abs(blocks).max(axis=-2, keepdims=True)
    limit = 127.0 if kind == "int8" else 1.0
    scales = jnp.where(top > 0, top / limit, 1.0).astype(jnp.bfloat16)
    unit = blocks / scales.astype(jnp.float32)
    scales = scales[..., 0, :]
    if kind == "int8":
        codes = jnp.clip(jnp.round(unit), -127, 127).astype(jnp.int8)
        return codes.reshape(kernel.shape), scales
    if size_in % 2:
        raise ValueError(f"quantize=nf4 packs pairs of rows, and a layer has {size_in}; use int8")
    # A sum of comparisons is one fused loop; a binary search would be several loops
    middles = ((NF4[1:] + NF4[:-1]) / 2).astype(np.float32)
    codes = sum((unit > middle).astype(jnp.uint8) for middle in middles).reshape(kernel.shape)
    return codes[..., 0::2, :] | (codes[..., 1::2, :] << 4), scales


def decode(codes: Array, scales: Array, dtype: str) -> Array:
    """Returns the kernel `[..., in, out]` of codes and scales.

    Args:
      codes: from `encode`.
      scales: from `encode`.
      dtype: name of the dtype of the result.
    """
    if codes.dtype == jnp.uint8:
        pair = jnp.stack([codes & 15, codes >> 4], axis=-2)
        shape = (*codes.shape[:-2], 2 * codes.shape[-2], codes.shape[-1])
        unit = jnp.asarray(NF4, dtype)[pair].reshape(shape)
    else:
        unit = codes.astype(dtype)
    size_in, size_out = unit.shape[-2:]
    blocks = unit.reshape(*unit.shape[:-2], scales.shape[-2], -1, size_out)
    kernel = blocks * scales.astype(dtype)[..., None, :]
    return kernel.reshape(*unit.shape[:-2], size_in, size_out)
