"""Uplinks: transform a client's value on its way to the server.

`chain` composes links, which encode in order and decode in reverse order. A link changes
floating leaves only. Meaning of `bound`: for any value, however large, the global norm of
`decode(encode(value))` is at most the bound that the chain declares, or it is not finite (an
overflow in a narrower type, an infinity in the value) and the client is dropped.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax.tree

from fedjax_post.core.algorithm import PyTree, Uplink, no_context
from fedjax_post.core.norms import is_float, limit_norm, narrow


def message_like(link: Uplink, like: PyTree) -> PyTree:
    """Returns shapes and dtypes of the message that `link` makes of a value like `like`."""
    if link.shape is not None:
        return link.shape(like)

    def message(value):
        return link.encode(value, None, link.init(value), no_context())[0]

    return jax.eval_shape(message, like)


def chain(*links: Uplink) -> Uplink:
    """Returns the links composed: encoded in order, decoded in reverse order.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_post.core import cast, chain, num_bytes, top_k
    >>> from fedjax_post.core.uplinks import message_like
    >>> link = chain(top_k(0.1), cast(jnp.bfloat16))
    >>> num_bytes(message_like(link, jax.ShapeDtypeStruct((1000,), "float32")))
    600

    Raises:
      ValueError: if there are no links, or one that acts on values (`clip`) follows another.
    """
    if not links:
        raise ValueError("chain needs at least one link; use plain() to send values as they are")
    if any(link.first for link in links[1:]):
        raise ValueError("clip acts on values, so it must be the first link of a chain")

    def likes(like):
        out = [like]
        for link in links[:-1]:
            out.append(message_like(link, out[-1]))
        return out

    def init(like):
        return tuple(link.init(x) for link, x in zip(links, likes(like), strict=True))

    def encode(value, replica, states, ctx):
        new = []
        for i, (link, state) in enumerate(zip(links, states, strict=True)):
            link_ctx = ctx._replace(key=jax.random.fold_in(ctx.key, i))
            value, state = link.encode(value, replica, state, link_ctx)
            new.append(state)
        return value, tuple(new)

    def decode(message, like):
        for link, x in reversed(list(zip(links, likes(like), strict=True))):
            message = link.decode(message, x)
        return message

    def bound(norm):
        for link in links:
            norm = link.bound(norm)
        return norm

    remembers = any(link.remembers for link in links)
    linear = all(link.linear for link in links)
    first = links[0].first
    return Uplink(init, encode, decode, bound, first=first, remembers=remembers, linear=linear)


def clip(max_norm: float) -> Uplink:
    """Returns a link that scales a value to a global norm of at most `max_norm`.

    A value of norm at most (1 - 1e-5) `max_norm` is sent unchanged, to the bit; see `core.norms`.

    Raises:
      ValueError: if `max_norm` is not positive.
    """
    if isinstance(max_norm, int | float) and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}; inf means no clipping")

    def encode(value, replica, state, ctx):
        del replica, ctx
        return limit_norm(value, max_norm), state

    bound = lambda norm: min(norm, max_norm)
    return Uplink(no_state, encode, _same, bound, first=True, linear=True)


def cast(dtype: jnp.dtype) -> Uplink:
    """Returns a link that sends floating leaves as `dtype`; decoding restores their dtype."""
    kind = jnp.finfo(dtype)

    def decode(message, like):
        return jax.tree.map(lambda x, y: x.astype(y.dtype), message, like)

    def bound(norm):
        # Rounding adds at most half a unit in the last place; above the maximum it overflows.
        return norm * (1 + float(kind.eps)) if norm < float(kind.max) else math.inf

    encode = lambda value, replica, state, ctx: (
        _on_floats(lambda x: narrow(x, dtype), value),
        state,
    )
    return Uplink(no_state, encode, decode, bound)


class Sparse(NamedTuple):
    """The entries of one flattened leaf that are sent."""

    indices: jax.Array  # [k], int32
    values: jax.Array  # [k]


def top_k(fraction: float) -> Uplink:
    """Returns a link that sends the `fraction` of each leaf's entries of largest magnitude.

    Each entry costs 4 bytes of index in addition to its value; `max(1, round(fraction * size))`
    entries of a leaf are kept (Stich et al. 2018, arXiv:1809.07599).

    Raises:
      ValueError: if `fraction` is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")

    def keep(x):
        count = max(1, round(fraction * x.size))
        _, index = jax.lax.top_k(jnp.abs(x.ravel()), count)
        return Sparse(index.astype(jnp.int32), x.ravel()[index])

    def fill(y, sparse):
        if not isinstance(sparse, Sparse):
            return sparse
        return jnp.zeros(y.size, y.dtype).at[sparse.indices].set(sparse.values).reshape(y.shape)

    encode = lambda value, replica, state, ctx: (_on_floats(keep, value), state)
    decode = lambda message, like: jax.tree.map(fill, like, message)
    return Uplink(no_state, encode, decode, lambda bound: bound)


def error_feedback(link: Uplink) -> Uplink:
    """Returns `link` with error feedback: each round adds what earlier rounds lost to the value.

    The client's state is the accumulated loss, a tree like the value. The decoded value has no
    bound, since the losses of many rounds may arrive at once (Seide et al. 2014; Karimireddy et
    al. 2019, arXiv:1901.09847, Algorithm 1).
    """

    def init(like):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), link.init(like)

    def encode(value, replica, state, ctx):
        lost, inner = state
        value = jax.tree.map(lambda v, e: v + e if is_float(v) else v, value, lost)
        message, inner = link.encode(value, replica, inner, ctx)
        return message, (optax.tree.sub(value, link.decode(message, value)), inner)

    shape = lambda like: message_like(link, like)
    return Uplink(init, encode, link.decode, shape=shape, remembers=True, linear=link.linear)


def no_state(like: PyTree) -> tuple[()]:
    """Returns the empty state of a link without state."""
    del like
    return ()


def _same(message: PyTree, like: PyTree) -> PyTree:
    del like
    return message


def _on_floats(fn, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: fn(x) if is_float(x) else x, tree)
