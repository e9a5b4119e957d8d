"""Attention: cuDNN's fused kernel where it exists, else products that hold the weights.

    who asks                                      causal by place?   on CUDA, half precision
    training and scoring, padded on the right     yes                fused
    the same with sliding layers                  yes                fused, a left window
    packed rows or padding on the left            no: segments       XLA, a dense mask
    prefill and decoding                          no: a cache        XLA, a dense mask
    a soft cap (Gemma 2), float32, TPU, CPU       either             XLA, a dense mask

Segments stay with XLA: cuDNN takes them as an additive bias of `[B, N, L, S]`, of which its
backward pass writes the gradient too, so that no memory is saved; and under vmap jax wants
that bias broadcast by hand.

Second derivatives exist everywhere but through cuDNN, where they are refused by name; forward
mode alone has no rule there either.

What was verified, and how (jax 0.10.2; no GPU at hand): that the kernel's arguments mean what
dense masks mean, by handing the same calls to jax's XLA implementation on a CPU; that forward
and backward passes, under vmap, lower for CUDA to cuDNN's calls with those arguments. The kernel
itself has not been run.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.model.config import DecoderConfig

AMPERE, HOPPER = (8, 0), (9, 0)  # CUDA compute capabilities


class Device(NamedTuple):
    """What decides between kernels: facts of the default backend's first device."""

    platform: str  # "cpu", "tpu", "cuda" or "rocm"
    capability: tuple[int, int] = (0, 0)  # of CUDA
    has_cudnn: bool = False  # whether jax finds a cuDNN that serves this device


def find_device() -> Device:
    """Returns the facts of the device that programs are compiled for by default."""
    chosen = jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined]
    return read_facts(jax.devices(chosen)[0] if isinstance(chosen, str) else chosen)


@functools.cache
def read_facts(device: Any) -> Device:
    """Returns the facts of one of jax's devices."""
    if device.platform != "gpu":
        return Device(device.platform)
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    if not found:
        return Device("rocm")
    return Device("cuda", (int(found[1]), int(found[2])), _finds_cudnn())


def fuses(device: Device, config: DecoderConfig) -> bool:
    """Returns whether cuDNN computes this model's causal attention on this device.

    As `jax.nn.dot_product_attention(implementation="cudnn")` of jax 0.10.2 and NVIDIA's
    support matrix of cuDNN 9.18 say: compute capability 8.0; float16 or bfloat16; heads of a
    multiple of 8, up to 128 wide, 256 from Hopper on; no soft cap. Lengths are free without a bias.
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
      config: a model that `fuses`.
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
    """The kernel with its own gradient, whose derivatives are refused by name."""

    @jax.custom_vjp
    def attention(q, k, v):
        return kernel(q, k, v)

    def forward(*inputs):
        return jax.vjp(kernel, *map(_held_fixed, inputs))

    def backward(pull, cotangent):
        return pull(_held_fixed(cotangent))

    attention.defvjp(forward, backward)
    return attention


@jax.custom_jvp
def _held_fixed(x):
    return x


@_held_fixed.defjvp
def _refuse(primals, tangents):
    del primals, tangents
    raise NotImplementedError(
        "cuDNN's attention has a gradient but no second derivative: load the model in "
        "dtype=float32, which another kernel computes, or hold the inner gradient fixed by taking "
        "it at jax.lax.stop_gradient(params)"
    )


def attend(q, k, v, *, mask, scale: float, cap: float | None):
    """Returns softmax(cap(q k' scale) where mask) v, `[B, L, N, H]`; the softmax is float32.

    `jax.nn.dot_product_attention` knows no soft cap, and on a CPU is 2.5 times
    slower forward and backward than `folded`.
    """
    if cap is None and find_device().platform != "cpu":
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="xla")
    return folded(q, k, v, mask=mask, scale=scale, cap=cap)


def folded(q, k, v, *, mask, scale: float, cap: float | None):
    """Attention whose query heads of one group are rows of one matrix product."""
    batch, length, heads, width = q.shape
    slots, groups = k.shape[1:3]
    q = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, groups, -1, width)
    logits = jnp.matmul(q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32) * scale
    logits = logits.reshape(batch, groups, -1, length, slots)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    logits = jnp.where(mask[:, :, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    mixed = weights.reshape(batch, groups, -1, slots) @ v.transpose(0, 2, 1, 3)
    mixed = mixed.reshape(batch, groups, heads // groups, length, width)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _finds_cudnn() -> bool:
    """Whether a small call passes the library's own checks, which need no data."""
    like = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attention, like, like, like)
    except (RuntimeError, NotImplementedError):  # no cuDNN, or too old for the device
        return False
    return True
