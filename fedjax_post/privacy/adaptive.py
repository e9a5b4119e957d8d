"""A clip norm that follows a quantile of the norms of what clients send.

Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping",
NeurIPS 2021, arXiv:1905.03871, Algorithm 1 with geometric updates. The clip norm C is broadcast
with the shared variables. Each client sends its value divided by C, clipped to norm 1, and whether
its norm was below C. The server multiplies the mean by C, and moves C by the share b of clients
below it, towards the quantile q:  C <- C exp(-0.2 (b - q)).

Both are noised: of the privacy of a round's noise multiplier z, the count takes a part, with noise
of deviation s on the sum of b - 1/2, and the values get noise of multiplier
(z^-2 - (2 s)^-2)^(-1/2), so that together they cost what z costs (theorem 1). s is a twentieth of
the cohort, as in the paper, or z if that is more; the second keeps the values' noise below 1.16 z
in small cohorts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core.algorithm import (
    Algorithm,
    Bill,
    Client,
    Downlink,
    PyTree,
    Server,
    Uplink,
    Upload,
)
from fedjax_post.core.norms import norm
from fedjax_post.core.wire import pieces

_RATE = 0.2  # of the clip norm's logarithm, as in the paper
_COUNTED = 4  # bytes of the count and of the clip norm


class Clipped(NamedTuple):
    """What is shared: the algorithm's own variables, and the clip norm."""

    inner: PyTree
    norm: jax.Array  # (), float32


class Marked(NamedTuple):
    """What a client sends."""

    value: PyTree  # over the clip norm
    below: jax.Array  # (), float32: 1/2 if its norm was at most the clip norm, else -1/2


def follow_quantile(base: Algorithm, *, start: float, quantile: float) -> Algorithm:
    """Returns the algorithm in units of a clip norm that follows a quantile; nothing is clipped.

    Args:
      base: the algorithm.
      start: first clip norm.
      quantile: share of clients whose values are to be below the clip norm, in (0, 1).

    Raises:
      ValueError: if `quantile` is out of range.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"clip_quantile must be in (0, 1), got {quantile}; 0.5 is the median")

    def update(model, replica, state, data, ctx):
        upload, state, metrics = base.client.update(model, replica.inner, state, data, ctx)
        value = jax.tree.map(lambda x: x / replica.norm, upload.value)
        below = jnp.where(norm(upload.value) <= replica.norm, 0.5, -0.5)
        return Upload(Marked(value, below), upload.weight, _bill(upload)), state, metrics

    def serve(mean, state, shared):
        change = jax.tree.map(lambda x: x * shared.norm, mean.value)
        inner, state = base.server.update(change, state, shared.inner)
        moved = shared.norm * jnp.exp(-_RATE * (mean.below + 0.5 - quantile))
        return Clipped(inner, moved), state

    def read(marked, replica):
        whole = jax.tree.map(lambda x: x * replica.norm, marked.value)
        return base.read(whole, replica.inner)

    init = lambda model, replica, key: base.client.init(model, replica.inner, key)
    return base._replace(
        init=lambda params: Clipped(base.init(params), jnp.float32(start)),
        client=Client(init, update),
        uplink=_on_value(base.uplink),
        downlink=_with_norm(base.downlink),
        server=Server(lambda shared: base.server.init(shared.inner), serve),
        deploy=lambda model, replica, state=None: base.deploy(model, replica.inner, state),
        value_like=lambda shared: Marked(base.value_like(shared.inner), jnp.float32(0)),
        read=read,
    )


def split_noise(noise_multiplier: Any, cohort_size: float) -> tuple[Any, Any]:
    """Returns the noise multiplier of the values, and the deviation of the noise on the count.

    Args:
      noise_multiplier: z, of both together.
      cohort_size: expected number of clients in a round.
    """
    most = jnp.maximum(cohort_size / 20, noise_multiplier)
    share = noise_multiplier / (2 * most)
    count = jnp.where(jnp.asarray(noise_multiplier) > 0, most, 0.0)
    return noise_multiplier / jnp.sqrt(1 - share**2), count


def _with_norm(down: Downlink) -> Downlink:
    def receive(message, replica):
        return Clipped(down.receive(message.inner, replica.inner), message.norm)

    return Downlink(
        init=lambda shared: Clipped(down.init(shared.inner), shared.norm),
        encode=lambda shared: Clipped(down.encode(shared.inner), shared.norm),
        receive=receive,
    )


def _on_value(link: Uplink) -> Uplink:
    """Returns the link on the values of `Marked`; marks are bounded, and sent as they are."""

    def encode(marked, replica, state, ctx):
        inner = None if replica is None else replica.inner
        message, state = link.encode(marked.value, inner, state, ctx)
        return Marked(message, jnp.clip(marked.below, -0.5, 0.5)), state

    decode = lambda message, like: Marked(link.decode(message.value, like.value), message.below)
    bound = lambda norm: (link.bound(norm) ** 2 + 0.25) ** 0.5
    return link._replace(
        init=lambda like: link.init(like.value),
        encode=encode,
        decode=decode,
        bound=bound,
        shape=None if link.shape is None else _shape_of(link.shape),
    )


def _shape_of(shape_fn: Any) -> Any:
    return lambda like: Marked(shape_fn(like.value), like.below)


def _bill(upload: Upload) -> Any:
    """Returns the client's bill, with the clip norm and the mark if it has a bill of its own."""
    if not isinstance(upload.bill, Bill):
        return upload.bill
    one = (_COUNTED, jnp.int32(1))
    return Bill(*(pieces(*part.items(), one) for part in upload.bill))
