"""Secure sums for any algorithm that averages: the server sees masked uploads and their sum.

Each client multiplies its value by its weight, writes both as whole numbers (`fixed_point`) and
adds masks (`masks`) that only cancel in the sum over the clients of a round. The server adds up
what it receives modulo 2^32 and decodes once. What it learns of the clients that stayed is the
weighted sum of their values, the sum of their weights, and who they were.

With noise, each client also adds a discrete Gaussian number to each of its codes: Kairouz, Liu
and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, arXiv:2102.06387, with rounding to nearest and without their rotation.
The noise of `threshold` clients is enough for the account, `privacy.accounts.shares`.

| case | treatment and reason |
| --- | --- |
| fewer clients stay than `threshold` | nothing is decoded; `shared` and the server are unchanged |
| more clients than `max_clients` | the same: the sum could overflow |
| a value without code: not finite, beyond the bound | its client stays away after the masks of \
others are made; the server removes these |
| the server needs single values: a median, Krum, telemetry | refused: it sees the sum alone |
| a link whose messages do not add up: `top_k`, `quantize`, `cast` | refused |
| links without a bound, such as none or `error_feedback` | refused: a sum could overflow |
| values of other rounds, in asynchronous runs | refused: masks are those of one round |
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fedjax_post.core.aggregates import present as zero_absent
from fedjax_post.core.algorithm import (
    Added,
    Aggregate,
    Algorithm,
    Around,
    Bill,
    Client,
    Pieces,
    PyTree,
    Server,
    Upload,
    plain,
    unread,
)
from fedjax_post.core.compose import check_may
from fedjax_post.core.norms import is_float
from fedjax_post.core.wire import num_bytes, pieces
from fedjax_post.privacy.secure import fixed_point
from fedjax_post.privacy.secure.cost import protocol_bytes
from fedjax_post.privacy.secure.discrete import discrete_gaussian
from fedjax_post.privacy.secure.fixed_point import FixedPoint
from fedjax_post.privacy.secure.masks import Seat, mask_left, mask_of

_STREAM = 0x6D61736B  # separates the keys of masks from other keys of the same seed
_LEAST_NOISE = 4.0  # deviation of a client's noise, of codes: see `accounts.shares`
_COARSE = 2.0**-6  # largest share of rounding in the norm of a value


class Masked(NamedTuple):
    """What a client uploads: uniform to everyone who does not know the masks."""

    codes: PyTree  # uint32, shaped like the value
    weight: jax.Array  # (), uint32
    seat: Seat


class Sum(NamedTuple):
    """The sum of uploads modulo 2^32."""

    codes: PyTree
    weight: jax.Array
    seat: Seat  # of the round; its place has no meaning
    present: jax.Array  # [lanes], int32: 1 for the places whose uploads are in the sum


class Opened(NamedTuple):
    """What the server learns in a round."""

    value: PyTree  # the mean
    enough: jax.Array  # (), bool: whether the sum could be opened; else the value has no meaning


def secure_sum(
    base: Algorithm,
    *,
    threshold: int,
    max_clients: int,
    max_weight: float = 1.0,
    bits: int | None = None,
    noise_multiplier: float = 0.0,
    seed: int,
) -> Algorithm:
    """Returns the algorithm with uploads that the server can only read as a sum.

    Without noise, the server is given the mean of `base` up to n / 2 steps of `fixed_point` in
    the sum of n clients. Masks cancel to the bit, so that chunks, devices and the order of the
    cohort do not change the sum at all. The records' means count every client alike, because
    weights are not sent in the clear.

    >>> import optax
    >>> from fedjax_post.algorithms.fed_avg import fed_avg
    >>> from fedjax_post.core import clip, with_uplink
    >>> base = fed_avg(lambda params, model, batch, key: (0.0, {}), optax.sgd(0.1))
    >>> algorithm = secure_sum(with_uplink(base, clip(1.0)), threshold=6, max_clients=8, seed=0)
    >>> algorithm.aggregate.sums
    True

    Args:
      base: the algorithm, whose links bound what a client sends.
      threshold: least number of clients of which a sum is opened, at least 2.
      max_clients: largest number of clients in a round.
      max_weight: largest weight of a client; one with more stays away. Not used if the
        aggregate counts every client alike.
      bits: as of `fixed_point.choose`.
      noise_multiplier: deviation of the noise of `threshold` clients in the sum, divided by the
        largest norm of a value; 0 adds none. Needs an aggregate that counts every client alike.
      seed: of the masks.

    Raises:
      ValueError: if a number is out of range, or the algorithm cannot be summed securely.
    """
    _check(base, threshold, max_clients, noise_multiplier)
    bound = base.uplink.bound(math.inf)
    codes = fixed_point.choose(
        bound,
        max_clients=max_clients,
        max_weight=1.0 if base.aggregate.fixed else max_weight,
        bits=bits,
        noise=noise_multiplier * (1 + _COARSE) * math.sqrt(max_clients / threshold),
    )
    root = lambda: jax.random.fold_in(jax.random.key(seed), _STREAM)
    reason = "its uploads are masked, and only their sum can be read"
    return base._replace(
        client=_masking(base, codes, root, noise_multiplier / math.sqrt(threshold)),
        uplink=plain(),
        aggregate=_summing(base.aggregate, codes, root, (threshold, max_clients)),
        server=_opening(base.server),
        value_like=lambda shared: _masked_like(base.value_like(shared)),
        read=unread,
        refuses={
            **base.refuses,
            Around.LINK: reason,
            Around.RULE: reason,
            Around.EQUAL: reason,
            Around.SCALE: reason,
            Around.NOISE: reason,
            Around.MASKS: reason,
            Around.STALE: "its masks are those of the clients of one round",
        },
    )


def _check(base: Algorithm, threshold: int, max_clients: int, noise_multiplier: float) -> None:
    """Raises ValueError with the reason for which an algorithm cannot be summed securely."""
    if not 2 <= threshold <= max_clients:
        raise ValueError(
            f"threshold={threshold} must be from 2 to max_clients={max_clients}: a sum of one "
            "upload is that upload"
        )
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(
            f"noise_multiplier must be finite and not negative, got {noise_multiplier}"
        )
    check_may(base, Around.MASKS, "a secure sum")
    if not base.aggregate.sums:
        raise ValueError(
            "a secure sum cannot be used with this algorithm: its server needs single uploads, "
            "not only their weighted sum; use one that averages, without a robust rule"
        )
    if not base.uplink.linear:
        raise ValueError(
            "a secure sum cannot be used with these links: the sum of their messages does not "
            "decode to the sum of the values; of the links, only clip can stay"
        )
    if not math.isfinite(base.uplink.bound(math.inf)):
        raise ValueError(
            "a secure sum needs a bound on what a client sends, so that it cannot overflow; add "
            "the link clip, such as clip(1.0), and leave error_feedback out"
        )
    if noise_multiplier and not base.aggregate.fixed:
        raise ValueError(
            "noise of clients needs an aggregate that counts every client alike; give "
            "`private(..., noise_multiplier=0)` as the base"
        )


def _masking(base: Algorithm, codes: FixedPoint, root: Any, noise_share: float) -> Client:
    """Returns the client, which uploads masked codes.

    `noise_share` is the deviation of its noise over the largest norm of its value.
    """

    def update(model, replica, state, data, ctx):
        upload, state, metrics = base.client.update(model, replica, state, data, ctx)
        link, own = base.uplink, ctx._replace(key=jax.random.fold_in(ctx.key, _STREAM))
        message, _ = link.encode(upload.value, replica, link.init(upload.value), own)
        value = link.decode(message, upload.value)
        _check_floats(value)
        weight = (upload.weight > 0) * 1.0 if base.aggregate.fixed else upload.weight
        fits = fixed_point.fits(codes, value, weight) & jnp.isfinite(upload.weight)
        flat, restore = ravel_pytree(fixed_point.encode(codes, value, weight))
        if noise_share:
            flat = flat.at[:-1].add(_noise(codes, noise_share, flat.size - 1, own.key))
        seat = Seat(*(jnp.asarray(x, jnp.int32) for x in (ctx.round, ctx.place, ctx.cohort)))
        hidden, hidden_weight = restore(flat + mask_of(root(), seat, flat.size))
        masked = Masked(hidden, hidden_weight, seat)
        # Weights are in the sum. NaN makes the engine drop the client.
        upload = Upload(masked, jnp.where(fits, 1.0, jnp.nan), _bill(upload, masked))
        return upload, state, metrics

    return Client(base.client.init, update)


def _noise(codes: FixedPoint, share: float, size: int, key: jax.Array) -> jax.Array:
    """Returns one client's noise on its codes, `[size]` uint32."""
    rounding = math.sqrt(size) / 2  # largest norm of what rounding adds to codes
    sigma = share * (2**codes.bits + rounding)
    if rounding > _COARSE * 2**codes.bits or sigma < _LEAST_NOISE:
        raise ValueError(
            f"codes of {codes.bits} bits are too coarse for noise on {size} entries: the bound is "
            f"{2**codes.bits} steps, rounding up to {rounding:.3g} and the noise of a client "
            f"{sigma:.3g}; choose smaller cohorts, or leave bits out for as many as fit"
        )
    return discrete_gaussian(key, sigma, (size,)).astype(jnp.uint32)


def _summing(rule: Aggregate, codes: FixedPoint, root: Any, counts: tuple[int, int]) -> Aggregate:
    """Returns the aggregate of masked codes; `counts` are the least and most clients of a sum."""

    def init(like, cohort_size):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        present = jnp.zeros(cohort_size, jnp.int32)
        return Sum(zeros.codes, zeros.weight, zeros.seat, present)

    def add(total, values, weights):
        here = weights > 0
        more = lambda sum, x: sum + zero_absent(x, weights).sum(0, dtype=jnp.uint32)
        found = lambda most, x: jnp.maximum(most, jnp.where(here, x, 0).max())
        return Sum(
            jax.tree.map(more, total.codes, values.codes),
            more(total.weight, values.weight),
            jax.tree.map(found, total.seat, values.seat),
            total.present.at[values.seat.place].add(here.astype(jnp.int32)),
        )

    def merge(one, other):
        seat = jax.tree.map(jnp.maximum, one.seat, other.seat)
        both = jax.tree.map(jnp.add, one, other)
        return both._replace(seat=seat)

    def finish(total):
        flat, restore = ravel_pytree((total.codes, total.weight))
        left = mask_left(root(), total.seat, total.present > 0, flat.size)
        value, weight = fixed_point.decode(codes, *restore(flat - left))
        # One client that stands for all: a mean is scaled by the weight, a fixed mean is not.
        if not rule.fixed:
            value = jax.tree.map(lambda x: jnp.where(weight > 0, x / weight, 0), value)
        one = jax.tree.map(lambda x: x[None], value)
        whole = rule.add(rule.init(value, 1), one, jnp.ones(1) if rule.fixed else weight[None])
        num_clients = (total.present > 0).sum()
        enough = (num_clients >= counts[0]) & (num_clients <= counts[1])
        return Opened(rule.finish(whole), enough)

    return Aggregate(init, add, merge, finish, fixed=rule.fixed, sums=True)


def _opening(server: Server) -> Server:
    """Returns the server, which changes nothing in a round whose sum could not be opened."""

    def update(opened, state, shared):
        after = server.update(opened.value, state, shared)
        keep = lambda new, old: jnp.where(opened.enough, new, old)
        return jax.tree.map(keep, after, (shared, state))

    return Server(server.init, update)


def _masked_like(like: PyTree) -> Masked:
    def made() -> Masked:
        codes = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.uint32), like)
        return Masked(codes, jnp.uint32(0), Seat(*[jnp.int32(0)] * 3))

    return jax.eval_shape(made)


def _check_floats(value: PyTree) -> None:
    others = {str(x.dtype) for x in jax.tree.leaves(value) if not is_float(x)}
    if others:
        raise ValueError(
            "a secure sum cannot be used with this algorithm: it sends values of type "
            f"{', '.join(sorted(others))}, and only weighted sums of numbers can be taken"
        )


def _bill(upload: Upload, masked: Masked) -> Bill | Added:
    """Returns the bytes of the protocol, added to the algorithm's own bill if it has one."""
    added = protocol_bytes(masked.seat.cohort)
    if not isinstance(upload.bill, Bill):
        return added
    whole = pieces((num_bytes(masked) + 4, jnp.int32(1)))  # and the weight of an upload
    return Bill(_joined(upload.bill.down, added.down), _joined(whole, added.up))


def _joined(one: Pieces, other: Pieces) -> Pieces:
    return pieces(*one.items(), *other.items())
