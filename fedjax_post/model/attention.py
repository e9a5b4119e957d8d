"""Attention: cuDNN's fused kernel where it is available, else explicit attention weights.

    use                                           causal by place?   on CUDA, half precision
    training and scoring, padded on the right     yes                fused
    the same with sliding layers                  yes                fused, a left window
    packed rows or padding on the left            no: segments       XLA, a dense mask
    prefill and decoding                          no: a cache        XLA, a dense mask
    a soft cap (Gemma 2), float32, TPU, CPU       either             XLA, a dense mask

On a CPU, training and scoring take queries in strips, each with the keys up to its end: those after
it would be masked, and are three eighths of all with four strips.

Segments use XLA: cuDNN takes them as an additive bias of `[B, N, L, S]`, and its backward pass
writes the gradient of that bias too, so that no memory is saved. Under vmap, jax also requires
that this bias is broadcast explicitly.

Second derivatives exist everywhere except through cuDNN, where an error explains what to do.
Forward-mode derivatives do not exist through cuDNN either.

What was verified, and how (jax 0.10.2; no GPU available): the kernel's arguments have the same
meaning as dense masks, by passing the same calls to jax's XLA implementation on a CPU; forward
and backward passes, under vmap, lower for CUDA to cuDNN calls with those arguments. The kernel
itself has not been run.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.model.config import DecoderConfig

AMPERE, HOPPER = (8, 0), (9, 0)  # CUDA compute capabilities


# Queries of a strip, and strips of a row, that are worth their own products
STRIP, MOST_STRIPS = 64, 4


class Device(NamedTuple):
    """The properties of a device that decide between kernels."""

    platform: str  # "cpu", "tpu", "cuda" or "rocm"
    capability: tuple[int, int] = (0, 0)  # of CUDA
    has_cudnn: bool = False  # whether jax finds a cuDNN that supports this device


def find_device() -> Device:
    """Returns the properties of the device that programs are compiled for by default."""
    chosen = jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined]
    return read_facts(jax.devices(chosen)[0] if isinstance(chosen, str) else chosen)


@functools.cache
def read_facts(device: Any) -> Device:
    """Returns the properties of one of jax's devices."""
    if device.platform != "gpu":
        return Device(device.platform)
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    if not found:
        return Device("rocm")
    return Device("cuda", (int(found[1]), int(found[2])), _has_cudnn())


def fuses(device: Device, config: DecoderConfig) -> bool:
    """Returns whether cuDNN computes this model's causal attention on this device.

    The conditions are those of `jax.nn.dot_product_attention(implementation="cudnn")` in jax
    0.10.2 and of NVIDIA's support matrix of cuDNN 9.18: compute capability 8.0 or higher, float16
    or bfloat16, a head width that is a multiple of 8 and at most 128 (256 from Hopper on), and no
    soft cap. Without a bias, any length is supported.
    """
    widest = 256 if device.capability >= HOPPER else 128
    return (
        device.platform == "cuda"
        and device.has_cudnn
        and device.capability >= AMPERE
        and config.dtype in ("bfloat16", "float16")
        and config.head_dim % 8 == 0
        and config.head_dim <= widest
        and config.attention_softcap is None
    )


def attend_causal(q, k, v, *, config: DecoderConfig, is_sliding=None):
    """Returns cuDNN's causal attention of whole sequences, `[B, L, N, H]`.

    Args:
      q: queries, `[B, L, N, H]`, float16 or bfloat16.
      k: keys, `[B, L, K, H]`.
      v: values, `[B, L, K, H]`.
      config: a model for which `fuses` is True.
      is_sliding: bool scalar, whether this layer sees `config.sliding_window` tokens only;
        None where no layer does.
    """
    kernel = functools.partial(
        jax.nn.dot_product_attention,
        is_causal=True,
        scale=config.softmax_scale,
        implementation="cudnn",
    )
    attention, window = _differentiable_once(kernel), config.sliding_window
    if is_sliding is None or window is None or window >= q.shape[1]:
        return attention(q, k, v)
    windowed = _differentiable_once(functools.partial(kernel, local_window_size=(window - 1, 0)))
    if len(config.sliding_layers) == config.num_layers:
        return windowed(q, k, v)
    return jax.lax.cond(is_sliding, windowed, attention, q, k, v)


def _differentiable_once(kernel):
    """Returns the kernel with its own gradient; derivatives of that gradient raise an error."""

    @jax.custom_vjp
    def attention(q, k, v):
        return kernel(q, k, v)

    def forward(*inputs):
        return jax.vjp(kernel, *map(_fix, inputs))

    def backward(pull, cotangent):
        return pull(_fix(cotangent))

    attention.defvjp(forward, backward)
    return attention


@jax.custom_jvp
def _fix(x):
    return x


@_fix.defjvp
def _refuse(primals, tangents):
    del primals, tangents
    raise NotImplementedError(
        "cuDNN's attention has a gradient but no second derivative; load the model in "
        "dtype=float32, which uses another kernel, or make the inner gradient a constant by "
        "computing it at jax.lax.stop_gradient(params)"
    )


def attend(q, k, v, *, mask, scale: float, cap: float | None, causal: bool = False):
    """Returns softmax(cap(q k' scale) where mask) v, `[B, L, N, H]`; the softmax is float32.

    `jax.nn.dot_product_attention` has no soft cap, and on a CPU its forward and backward passes
    are 2.5 times slower than those of `attend_grouped`.

    Args:
      q: queries, `[B, L, N, H]`.
      k: keys, `[B, S, K, H]`.
      v: values, `[B, S, K, H]`.
      mask: bool `[B, 1, L, S]`, True where a query may attend to a key.
      scale: factor on q k'.
      cap: soft cap of the logits, cap tanh(logits / cap); None is none.
      causal: whether S is L, and the mask is False wherever a key comes after the query.
    """
    on_cpu, length = find_device().platform == "cpu", q.shape[1]
    if cap is None and not on_cpu:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")
    num_strips = min(MOST_STRIPS, length // STRIP) if causal and on_cpu else 1
    if num_strips < 2:
        return attend_grouped(q, k, v, mask=mask, scale=scale, cap=cap)
    size = -(-length // num_strips)
    ends = [(start, min(start + size, length)) for start in range(0, length, size)]
    strips = [
        attend_grouped(
            *(q[:, start:end], k[:, :end], v[:, :end]),
            mask=mask[:, :, start:end, :end],
            scale=scale,
            cap=cap,
        )
        for start, end in ends
    ]
    return jnp.concatenate(strips, axis=1)


def attend_grouped(q, k, v, *, mask, scale: float, cap: float | None, shared=None):
    """Returns what `attend` returns, with the query heads of a group in one matrix product.

    Args:
      q: queries, `[B, L, N, H]`.
      k: keys, `[B, S, K, H]`.
      v: values, `[B, S, K, H]`.
      mask: as in `attend`; `[B, 1, L, F + S]` with `shared`.
      scale: as in `attend`.
      cap: as in `attend`.
      shared: keys and values `[1, F, K, H]` before those of every row, which are not copied; None
        for none.
    """
    batch, length, heads, width = q.shape
    parts, groups = ((k, v),) if shared is None else (shared, (k, v)), k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, groups, -1, width)
    products = [
        jnp.matmul(q, keys.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
        for keys, _ in parts
    ]
    logits = (products[0] if shared is None else jnp.concatenate(products, axis=-1)) * scale
    slots = logits.shape[-1]
    logits = logits.reshape(batch, groups, -1, length, slots)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    logits = jnp.where(mask[:, :, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype).reshape(batch, groups, -1, slots)
    mixed = weights[..., slots - k.shape[1] :] @ v.transpose(0, 2, 1, 3)
    if shared is not None:
        mixed = mixed + weights[..., : slots - k.shape[1]] @ shared[1].transpose(0, 2, 1, 3)
    mixed = mixed.reshape(batch, groups, heads // groups, length, width)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _has_cudnn() -> bool:
    """Returns whether a small call passes jax's own checks, which need no data."""
    like = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attention, like, like, like)
    except (RuntimeError, NotImplementedError):  # no cuDNN, or too old for the device
        return False
    return True
