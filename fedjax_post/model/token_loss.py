"""Cross-entropy of a model's head, computed only at the positions that have a loss.

Logits are the largest arrays of a training step, and in instruction tuning most of them belong
to prompts and padding. Here the positions with a loss are sorted to the front, a loop runs over
strips of them, and each strip computes its logits, its loss and its gradient at once, as in Hsu
et al., "Liger Kernel", 2024, arXiv:2410.10989, section 3.2. Only the gradient of a strip,
`[N, D]`, is kept, so that no backward pass needs logits. What remains to be differentiated is a
product with a constant, which is linear and therefore supports forward and reverse mode.

| result | products with the head per position with a loss |
| --- | --- |
| the loss | 1 |
| its gradient, head frozen | 2 |
| its gradient, head trained | 3 |

Clients stacked by `jax.vmap` process their strips in the same loop, with as many steps as the
client with the most positions needs; the more clients, the shorter a strip.

Derivatives of the gradient, in either mode and of any order, are those of a plain scan over
strips, each recomputed in its backward pass. This scan visits every position, with or without a
loss, and each of the stacked clients holds its own strip.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_post.core.view import TotalLoss
from fedjax_post.model.product import product

# Logits of all stacked clients in memory at once: 16 MiB of float32, on an accelerator 256 MiB
STRIP = 2**22
STRIP_ACCELERATOR = 2**26
# Rows that make a matrix product efficient; number of strips if neither rows nor memory limit it
MIN_ROWS = 128
NUM_STRIPS = 8


class Head(NamedTuple):
    """The weights of the head, with or without an axis G of groups.

    They have the dtype of the residual stream, except in a `mixed` form: there the kernel is
    bfloat16, or float32 where it is trained.
    """

    kernel: Array  # [D, V], or [V, D] if it is the embedding
    bias: Array | None = None  # [V]


class Form(NamedTuple):
    """The static properties of a head."""

    tied: bool  # the kernel is [V, D]
    softcap: float | None  # logits are cap tanh(logits / cap)
    mixed: bool = False  # float32 logits of operands rounded to bfloat16


class _Sums(NamedTuple):
    """The sums that the loop over strips computes for each group; gradients are optional."""

    nats: Array  # [G]
    num_correct: Array  # [G]
    grad_x: Array | None  # [G, M, D], positions with a loss first
    grad_head: Head | None  # leaves [G, ...], float32


def head_logits(x: Float[Array, "G N D"], head: Head, form: Form) -> Float[Array, "G N V"]:
    """Returns the logits of the next token, summed in float32.

    Args:
      x: the normalised residual stream, in the compute dtype.
      head: the weights, shared by all groups or with an axis G.
      form: the static properties of the head.
    """
    if form.mixed:
        logits = product(x, head.kernel, tied=form.tied)
    else:
        axes = "g" * (head.kernel.ndim - 2) + ("vd" if form.tied else "dv")
        logits = jnp.einsum(f"gnd,{axes}->gnv", x, head.kernel, preferred_element_type=jnp.float32)
    if head.bias is not None:
        bias = head.bias.astype(jnp.float32)
        logits = logits + (bias[None, None] if bias.ndim == 1 else bias[:, None])
    if form.softcap is not None:
        logits = form.softcap * jnp.tanh(logits / form.softcap)
    return logits


def total_loss(
    x: Float[Array, "B M D"],
    targets: Int[Array, "B M"],
    mask: Bool[Array, "B M"],
    head: Head,
    form: Form,
) -> TotalLoss:
    """Returns the summed loss of `targets` at the positions that `mask` marks.

    Args:
      x: the normalised residual stream, in the compute dtype.
      targets: int32, the next token at each position.
      mask: True at positions with a loss.
      head: the weights of the head, in the compute dtype.
      form: the static properties of the head.
    """
    mask = mask.astype(bool).reshape(-1)
    flat = x.reshape(-1, x.shape[-1])
    nats, num_correct = _loss_sums(form, flat, targets.reshape(-1), mask, head)
    return TotalLoss(nats, num_correct, mask.sum(dtype=jnp.float32))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_sums(form, x, targets, mask, head):
    """Returns nats and correct tokens, without a gradient; x is `[N, D]`."""
    sums = _loop_of_groups(form, False, False)(x[None], targets[None], mask[None], head)
    return sums.nats[0], sums.num_correct[0]


@functools.partial(_loss_sums.defjvp, symbolic_zeros=True)
def _loss_sums_jvp(form, primals, tangents):
    """Returns the sums and their tangents, from the gradient that is computed with the loss."""
    x_dot, _, _, head_dot = tangents
    sums = _sums_with_gradients(form, (_moves(x_dot), _moves(head_dot)), *primals)
    grads = sums.grad_x, *(sums.grad_head or (None, None))
    slope = jnp.zeros((), jnp.float32)
    for grad, dot in zip(grads, (x_dot, *head_dot), strict=True):
        if grad is not None and not _is_zero(dot):
            slope = slope + (grad.astype(jnp.float32) * dot.astype(jnp.float32)).sum()
    return (sums.nats, sums.num_correct), (slope, jnp.zeros_like(slope))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sums_with_gradients(form, wanted, x, targets, mask, head):
    """Returns the sums of one group; `wanted` holds whether gradients of x and head are needed."""
    sums = _loop_of_groups(form, *wanted)(x[None], targets[None], mask[None], head)
    per_group = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    return _Sums(*map(per_group, sums))


@functools.partial(_sums_with_gradients.defjvp, symbolic_zeros=True)
def _sums_with_gradients_jvp(form, wanted, primals, tangents):
    """Returns the derivatives of the plain scan, along the inputs with nonzero tangents."""
    x, targets, mask, head = primals
    at = {"x": x, "head": head}
    dots = {"x": tangents[0], "head": tangents[3]}
    dots = {name: jax.tree.map(_as_array, dot) for name, dot in dots.items() if _moves(dot)}
    plain = lambda moved: _plain(form, wanted, targets, mask, **(at | moved))
    return jax.jvp(plain, ({name: at[name] for name in dots},), (dots,))


def _plain(form: Form, wanted: tuple[bool, bool], targets, mask, *, x, head) -> _Sums:
    """Returns what `_sums_with_gradients` returns, but by differentiating a scan over strips."""
    length, dtype = len(targets), x.dtype
    strip = min(length, MIN_ROWS)

    def in_strips(rows):
        rows = jnp.pad(rows, [(0, -length % strip)] + [(0, 0)] * (rows.ndim - 1))
        return rows.reshape(-1, strip, *rows.shape[1:])

    def summed(trained):
        # float32, so that the head's gradient is summed over strips in it
        x_, head_ = trained.get("x", x), trained.get("head", head)

        def add_strip(sums, rows):
            part, wanted, live = rows
            narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), head_)
            logits = head_logits(part[None], narrow, form)[0]
            chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
            nats = jnp.where(live, jax.nn.logsumexp(logits, axis=-1) - chosen, 0).sum()
            is_best = chosen >= jax.lax.stop_gradient(logits).max(axis=-1)
            return (sums[0] + nats, sums[1] + (live & is_best).sum(dtype=jnp.float32)), None

        strips = in_strips(x_), in_strips(targets), in_strips(mask)
        zeros = jnp.zeros(()), jnp.zeros(())
        return jax.lax.scan(jax.checkpoint(add_strip), zeros, strips)[0]

    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), head)
    trained = {"x": x} if wanted[0] else {}
    trained |= {"head": wide} if wanted[1] else {}
    (nats, num_correct), grads = jax.value_and_grad(summed, has_aux=True)(trained)
    return _Sums(nats, num_correct, grads.get("x"), grads.get("head"))


def _moves(tangent: Any) -> bool:
    """Returns whether any leaf of a tangent is nonzero."""
    return not all(_is_zero(leaf) for leaf in jax.tree.leaves(tangent))


def _as_array(tangent: Any) -> jax.Array:
    return jnp.zeros(tangent.shape, tangent.dtype) if _is_zero(tangent) else tangent


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


@functools.lru_cache(maxsize=64)
def _loop_of_groups(form: Form, want_x: bool, want_head: bool):
    """Returns `_loop` such that `jax.vmap` adds groups to it, instead of mapping its length."""
    loop = functools.partial(_loop, form=form, want_x=want_x, want_head=want_head)
    mapped = jax.custom_batching.custom_vmap(lambda *args: loop(*args))

    @mapped.def_vmap
    def add_groups(axis_size, in_batched, x, targets, mask, head):
        groups = x.shape[1] if in_batched[0] else x.shape[0]

        def widen(leaf, batched, *, per_group=True):
            """Returns a leaf `[axis_size, groups, ...]` with these two axes joined."""
            if not batched:
                leaf = jnp.broadcast_to(leaf[None], (axis_size, *leaf.shape))
            if not per_group:
                shape = (axis_size, groups, *leaf.shape[1:])
                leaf = jnp.broadcast_to(leaf[:, None], shape)
            return leaf.reshape(axis_size * groups, *leaf.shape[2:])

        def widen_head(leaf, batched, ndim):
            if leaf is None:
                return None
            per_group = leaf.ndim - batched > ndim
            return widen(leaf, batched, per_group=per_group) if batched or per_group else leaf

        rows = [widen(a, b) for a, b in zip((x, targets, mask), in_batched[:3], strict=True)]
        wide = Head(*map(widen_head, head, in_batched[3], (2, 1)))
        sums = mapped(*rows, wide)
        sums = jax.tree.map(lambda leaf: leaf.reshape(axis_size, groups, *leaf.shape[1:]), sums)
        return sums, jax.tree.map(lambda _: True, sums)

    return mapped


def _loop(x, targets, mask, head, *, form: Form, want_x: bool, want_head: bool) -> _Sums:
    """Returns the sums over the strips of G groups of N positions, one strip after another."""
    num_groups, length, _ = x.shape
    strip = strip_length(num_groups, length, head.kernel.shape[-2 if form.tied else -1])
    # rows without a loss go last; the row numbers that pad the last strip never count
    order = jnp.argsort(~mask, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -length % strip)))
    counts = mask.sum(1, dtype=jnp.int32)

    def add_strip(i, sums):
        index = jax.lax.dynamic_slice_in_dim(order, i * strip, strip, axis=1)
        live = (i * strip + jnp.arange(strip, dtype=jnp.int32))[None] < counts[:, None]
        part = jnp.take_along_axis(x, index[..., None], axis=1)
        wanted = jnp.take_along_axis(targets, index, axis=1)[..., None]
        logits = head_logits(part, head, form)
        chosen = jnp.take_along_axis(logits, wanted, axis=-1)
        # compared with the maximum, because an argmax takes ten times as long on a CPU
        best = logits.max(-1, keepdims=True)
        total = best + jnp.log(jnp.exp(logits - best).sum(-1, keepdims=True))
        nats = jnp.where(live, (total - chosen)[..., 0], 0).sum(1)
        num_correct = (live & (chosen >= best)[..., 0]).sum(1, dtype=jnp.float32)
        sums = sums._replace(nats=sums.nats + nats, num_correct=sums.num_correct + num_correct)
        if not (want_x or want_head):
            return sums
        tokens = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
        error = jnp.exp(logits - total) - (tokens == wanted)
        if form.softcap is not None:
            error = error * (1 - jnp.square(logits / form.softcap))
        error = jnp.where(live[..., None], error, 0)
        return _add_gradients(sums, error, part, head, form=form, at=i * strip)

    num_strips = (counts.max() + strip - 1) // strip
    sums = jax.lax.fori_loop(0, num_strips, add_strip, _zeros(x, order, head, want_x, want_head))
    if want_x:
        # restores the order: the k-th position with a loss is row k
        row = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        grad_x = jnp.take_along_axis(sums.grad_x, row[..., None], axis=1)
        sums = sums._replace(grad_x=jnp.where(mask[..., None], grad_x, 0))
    return sums


def _zeros(x, order, head: Head, want_x: bool, want_head: bool) -> _Sums:
    """Returns the initial sums, which are zero."""
    groups = x.shape[0]
    per_group = lambda ndim: lambda leaf: jnp.zeros((groups, *leaf.shape[-ndim:]), jnp.float32)
    grad_head = None
    if want_head:
        bias = None if head.bias is None else per_group(1)(head.bias)
        grad_head = Head(per_group(2)(head.kernel), bias)
    grad_x = jnp.zeros((*order.shape, x.shape[-1]), x.dtype) if want_x else None
    return _Sums(jnp.zeros(groups), jnp.zeros(groups), grad_x, grad_head)


def _add_gradients(sums: _Sums, error, part, head: Head, *, form: Form, at) -> _Sums:
    """Returns the sums with the gradients of a strip added; `error` is softmax minus one-hot."""
    dtype = jnp.bfloat16 if form.mixed else part.dtype  # of products, which are summed in float32
    narrow = error.astype(dtype)
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    letters = "vd" if form.tied else "dv"
    if sums.grad_x is not None:
        axes = "g" * (head.kernel.ndim - 2) + letters
        grad = dot(f"gnv,{axes}->gnd", narrow, head.kernel.astype(dtype)).astype(part.dtype)
        grad_x = jax.lax.dynamic_update_slice_in_dim(sums.grad_x, grad, at, axis=1)
        sums = sums._replace(grad_x=grad_x)
    if sums.grad_head is not None:
        kernel = sums.grad_head.kernel + dot(f"gnv,gnd->g{letters}", narrow, part.astype(dtype))
        bias = sums.grad_head.bias
        bias = None if bias is None else bias + error.sum(1)
        sums = sums._replace(grad_head=Head(kernel, bias))
    return sums


def strip_length(num_groups: int, length: int, vocab_size: int) -> int:
    """Returns the number of positions of each group in one strip.

    It is an eighth of the positions, so that the last strip wastes little; but at least enough
    rows for an efficient matrix product, and at most what the memory budget allows.

    Args:
      num_groups: G, at least 1.
      length: N, the positions of each group.
      vocab_size: V.
    """
    budget = STRIP if jax.default_backend() == "cpu" else STRIP_ACCELERATOR
    fewest = -(-MIN_ROWS // num_groups)
    most = max(fewest, budget // (vocab_size * num_groups))
    return min(length, most, max(fewest, -(-length // NUM_STRIPS)))
