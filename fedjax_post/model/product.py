"""Matrix products whose operands are rounded to bfloat16 and whose sums are float32.

A processor that multiplies bfloat16 (x86: avx512_bf16, amx_bf16) takes half the time for them
that it takes for float32 products, but only if both operands are bfloat16, the result is
float32, and neither operand is transposed beforehand. `jax.lax.dot_general` is such a product,
but its derivatives are not: their cotangent is float32, so that XLA widens the other operand.
`product` rounds the operands of its derivatives too, in forward and reverse mode and of any
order.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def product(
    x: Float[Array, "... M K"], kernel: Float[Array, "..."], *, tied: bool = False
) -> Float[Array, "... M N"]:
    """Returns x times kernel, float32, from operands that are rounded to bfloat16.

    Under `jax.vmap` of `x` alone it remains one product. The gradient of a float32 kernel is
    float32.

    Args:
      x: float32; `[G, M, K]` if the kernel has an axis of groups.
      kernel: `[K, N]`, or `[G, K, N]` for groups; bfloat16 or its bits, or float32 where it is
        trained.
      tied: whether the last two axes of the kernel are `[N, K]`.
    """
    rows = x if kernel.ndim == 3 else x.reshape(-1, x.shape[-1])
    out = _product.bind(rows, kernel, axes=(1, int(tied)))
    return out.reshape(*x.shape[:-1], out.shape[-1])


@jax.custom_jvp
def bits(kernel: Array) -> Array:
    """Returns the 16 bits of each bfloat16 as uint16, for layers that a CPU reads in a loop.

    XLA has no slices of bfloat16 on a CPU: it takes them from a float32 copy of all layers.

    Raises:
      NotImplementedError: if it is differentiated.
    """
    return jax.lax.bitcast_convert_type(kernel, jnp.uint16)


@bits.defjvp
def _refuse(primals, tangents):
    del primals, tangents
    raise NotImplementedError(
        "the frozen weights of a model with dtype=mixed have no derivative; pass the weights to "
        "differentiate as `params`, in float32"
    )


def _narrow(x):
    """Returns bfloat16 of a float array, or of the bits of one."""
    if x.dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x, jnp.bfloat16)
    return x.astype(jnp.bfloat16)


def _dot(x, y, *, axes):
    """Returns `[M, N]`, or `[G, M, N]` for groups, by summing over one of the last two axes.

    Args:
      x: `[M, K]` if `axes[0]` is 1, `[K, M]` if it is 0; or the same with an axis G.
      y: `[K, N]` if `axes[1]` is 0, `[N, K]` if it is 1; or the same with an axis G.
      axes: which of the last two axes is summed over.
    """
    x, y = _narrow(x), _narrow(y)
    groups = tuple(range(x.ndim - 2))
    sums = (len(groups) + axes[0],), (len(groups) + axes[1],)
    return jax.lax.dot_general(x, y, (sums, (groups, groups)), preferred_element_type=jnp.float32)


def _shape(x, y, *, axes):
    shape = *x.shape[:-2], x.shape[-1 - axes[0]], y.shape[-1 - axes[1]]
    return jax.core.ShapedArray(shape, jnp.dtype(jnp.float32))


def _transpose_x(g, x, y, *, axes):
    kept = 1 - axes[1]
    if axes[0] == 1:
        grad = _product.bind(g, y, axes=(1, kept))
    else:
        grad = _product.bind(y, g, axes=(kept, 1))
    return grad.astype(x.aval.dtype)


def _transpose_y(g, x, y, *, axes):
    kept = 1 - axes[0]
    if axes[1] == 0:
        grad = _product.bind(x, g, axes=(kept, 0))
    else:
        grad = _product.bind(g, x, axes=(0, kept))
    return grad.astype(y.aval.dtype)


def _batch(args, mapped, *, axes):
    """Adds rows of `x` if it is mapped alone, and groups otherwise."""
    x, y = args
    if mapped[1] is None and axes[0] == 1:
        x = jnp.moveaxis(x, mapped[0], -3)
        rows = x.reshape(*x.shape[:-3], -1, x.shape[-1])
        out = _product.bind(rows, y, axes=axes)
        return out.reshape(*x.shape[:-1], out.shape[-1]), x.ndim - 3
    (size,) = {a.shape[at] for a, at in zip(args, mapped, strict=True) if at is not None}
    stacked = [
        jnp.broadcast_to(a, (size, *a.shape)) if at is None else jnp.moveaxis(a, at, 0)
        for a, at in zip(args, mapped, strict=True)
    ]
    out = _product.bind(*(a.reshape(-1, *a.shape[-2:]) for a in stacked), axes=axes)
    return out.reshape(*stacked[0].shape[:-2], *out.shape[1:]), 0


_product = Primitive("bfloat16_product")
_product.def_impl(functools.partial(jax.jit, static_argnames="axes")(_dot))
_product.def_abstract_eval(_shape)
ad.defbilinear(_product, _transpose_x, _transpose_y)
batching.primitive_batchers[_product] = _batch
mlir.register_lowering(_product, mlir.lower_fun(_dot, multiple_results=False))
