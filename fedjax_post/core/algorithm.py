"""A federated algorithm: a client, two wires, an aggregate and a server.

Three places compute: the client, the wire and the server. Four kinds of value
exist: the frozen *model*, which never travels and is never mapped; the *shared*
variables that the federation learns, any pytree; one *state per client*; and
the *messages*. Everything here is written for one client; `simulate` maps it.
"""

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core.access import Access

PyTree = Any
Metrics = dict[str, jax.Array]

# Metrics that count what left a client: summed over calls, steps and clients, never averaged
SUMMED = ("queries", "tokens_sent", "labels_sent")


def mean_of(total: Metrics, count: Any) -> Metrics:
    """What `count` calls told, from its sum: the mean, and the sum itself for `SUMMED`."""
    scaled = jax.tree.map(lambda x: 1 / count * x, total)
    return scaled | sums_of(total)


def sums_of(metrics: Metrics) -> Metrics:
    """Those of some metrics that are sums, to be added up."""
    return {name: metrics[name] for name in SUMMED if name in metrics}


class Context(NamedTuple):
    """Where a client stands: scalars; arrays of `[clients]` once mapped."""

    key: jax.Array  # folded from (run seed, round, client id)
    round: jax.Array  # (), int32, from 0
    client_id: jax.Array  # (), int32; -1 marks a padding lane


def no_context() -> Context:
    """A context for working out shapes."""
    return Context(jax.random.key(0), jnp.int32(0), jnp.int32(0))


class ClientData(NamedTuple):
    """What one client trains on in one visit.

    Uneven clients are padded to `K_max` steps; a step whose mask is False
    changes nothing, not even an optimizer's count.
    """

    batches: PyTree  # leaves [K_max, B, ...]
    step_mask: Any  # [K_max], bool: steps really taken
    num_examples: Any  # (), float32: examples that the client holds (n_k of FedAvg)
    num_tokens: Any  # (), float32: tokens (or examples) that the losses of this visit look at
    rank: Any  # (), int32: the client's LoRA rank; 0 where ranks do not differ
    num_read: Any = 0.0  # (), float32: tokens (or examples) read, without padding; for speed only
    step_size: Any = 0.0  # (), float32: those that one step has room for; to account for padding


# {bytes of a piece: how many of them}, see `core.wire.pieces`
Pieces = dict[int, Any]


class Bill(NamedTuple):
    """What one visit costs on the wire where that differs from its messages' shapes.

    Only a part of a message may travel (masked components), or more than one message
    (what a client missed).
    """

    down: Pieces
    up: Pieces  # gives way to the message's own size under a link that changes its layout


class Upload(NamedTuple):
    """What one client wants the server to learn, and how much it counts."""

    value: PyTree
    weight: jax.Array  # (), float32
    # for the simulator's account; () where the messages' shapes say it all
    bill: Bill | tuple[()] = ()


class Client(NamedTuple):
    """What runs on a client."""

    init: Callable  # (model, replica, key) -> state
    update: Callable  # (model, replica, state, data, ctx) -> (Upload, state, metrics)


def stateless(model: PyTree, replica: PyTree, key: jax.Array) -> tuple[()]:
    """The state of a client that keeps none."""
    del model, replica, key
    return ()


def _any_bound(bound: float) -> float:
    del bound
    return math.inf


class Uplink(NamedTuple):
    """What happens to a value on its way to the server; see `core.uplinks`."""

    init: Callable  # (like) -> state
    encode: Callable  # (value, replica, state, ctx) -> (message, state), on the client
    decode: Callable  # (message, like) -> value, on the server
    # (norm bound of what comes in) -> bound of what decodes; inf if none holds
    bound: Callable[[float], float] = _any_bound
    first: bool = False  # acts on values, so no link may come before it in a chain
    remembers: bool = False  # makes up in one round for what an earlier one lost
    # (like) -> like of the message; None: worked out from `encode`, with no replica
    shape: Callable | None = None


class Downlink(NamedTuple):
    """What crosses to the clients, and what they make of it."""

    init: Callable  # (shared) -> replica
    encode: Callable  # (shared) -> message
    receive: Callable  # (message, replica) -> replica, once for all clients


class Aggregate(NamedTuple):
    """How the values of a cohort become one; see `core.aggregates`."""

    init: Callable  # (like, cohort_size) -> total
    add: Callable  # (total, values[clients, ...], weights[clients]) -> total
    merge: Callable  # (total, total) -> total
    finish: Callable  # (total) -> value
    fixed: bool = False  # the denominator is fixed, so that an empty round counts too
    scales: bool = False  # makes values smaller than their mean would, to a bound
    # "value": finishes as one tree like a client's value; "products": what comes of it
    # depends on the values, `Factors`, by their products A B alone; "": anything else
    kind: str = ""


class Server(NamedTuple):
    """How the aggregated value moves what is shared; see `core.servers`."""

    init: Callable  # (shared) -> state
    update: Callable  # (value, state, shared) -> (shared, state)


def plain() -> Uplink:
    """An uplink that sends the value as it is."""
    return Uplink(
        init=lambda like: (),
        encode=lambda value, replica, state, ctx: (value, state),
        decode=lambda message, like: message,
        bound=lambda bound: bound,
    )


def whole() -> Downlink:
    """A downlink that sends the shared variables as they are."""
    return Downlink(
        init=lambda shared: shared,
        encode=lambda shared: shared,
        receive=lambda message, replica: message,
    )


def nothing() -> Downlink:
    """A downlink that sends nothing: clients keep what they were given at the start."""
    return Downlink(lambda shared: shared, lambda shared: (), lambda message, replica: replica)


def idle() -> Server:
    """A server that leaves the shared variables as they are."""
    return Server(lambda shared: (), lambda value, state, shared: (shared, state))


def as_is(model: PyTree, replica: PyTree, state: PyTree = None) -> tuple[PyTree, PyTree]:
    """Deploys the replica itself, over the model itself."""
    del state
    return model, replica


class Reading(NamedTuple):
    """What one client's value tells of its training, for `core.telemetry`; None if it does not."""

    change: PyTree = None  # of what it trains; the server is given the mean of these
    after: PyTree = None  # what it trained, as it was in the end


def unread(value: PyTree, replica: PyTree) -> Reading:
    """Tells nothing of a value."""
    del value, replica
    return Reading()


def as_change(value: PyTree, replica: PyTree) -> Reading:
    """Reads a value that is what was added to the replica."""
    return Reading(value, jax.tree.map(jnp.add, replica, value))


def as_given(params: PyTree) -> PyTree:
    """Shares the parameters themselves."""
    return params


class Around(enum.Enum):
    """What may be put around an algorithm, or refused by it; see `core.compose`."""

    LINK = "another link to the server"
    MEMORY = "a link that makes up for what it lost in earlier rounds"
    SCALE = "a bound or a fixed denominator, which makes values smaller: their place must be 0"
    RULE = "another aggregate in the place of its mean"
    EQUAL = "a mean that counts clients alike, whatever their weights"
    NOISE = "noise on the mean; see `privacy.noise`"
    STALE = "values of clients that began in earlier rounds; see `simulate.asynchronous`"


class Algorithm(NamedTuple):
    """A federated algorithm as data; see the module's head for the parts."""

    client: Client
    server: Server
    aggregate: Aggregate
    uplink: Uplink = plain()
    downlink: Downlink = whole()
    init: Callable = as_given  # (params) -> shared
    # (model, replica, state of a client or None) -> (model, params): what is
    # evaluated and exported; with a client's state, that client's own model
    deploy: Callable = as_is
    access: Mapping[str, Access] = {"target": Access.GRADIENTS}
    # (shared) -> a tree like the value that a client uploads
    value_like: Callable = as_given
    # what may not be put around it, as it would no longer compute what it says, and why
    refuses: Mapping[Around, str] = {}
    # (value, replica) -> Reading: for the simulator's telemetry, and for nothing else
    read: Callable = unread
    # heeds the rank of each client, `data.rank`, so that ranks may differ
    ranked: bool = False
