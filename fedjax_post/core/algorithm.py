"""A federated algorithm: a client, two wires, an aggregate and a server.

Three places compute: the client, the wire and the server. Four kinds of value
exist: the frozen *model*, which never travels and is never mapped; the *shared*
variables that the federation learns, any pytree; one *state per client*; and
the *messages*. Everything here is written for one client; `simulate` maps it.
"""

import enum
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core import contracts
from fedjax_post.core.access import Access
from fedjax_post.core.values import SUMMED as SUMMED
from fedjax_post.core.values import Bill as Bill
from fedjax_post.core.values import ClientData as ClientData
from fedjax_post.core.values import Context as Context
from fedjax_post.core.values import Metrics as Metrics
from fedjax_post.core.values import Pieces as Pieces
from fedjax_post.core.values import PyTree as PyTree
from fedjax_post.core.values import Reading as Reading
from fedjax_post.core.values import Upload as Upload
from fedjax_post.core.values import mean_of as mean_of
from fedjax_post.core.values import no_context as no_context
from fedjax_post.core.values import sums_of as sums_of


class Client(NamedTuple):
    """What runs on a client."""

    init: contracts.ClientInit  # (model, replica, key) -> state
    update: contracts.ClientUpdate  # (model, replica, state, data, ctx) -> (Upload, state, metrics)


def stateless(model: PyTree, replica: PyTree, key: jax.Array) -> tuple[()]:
    """The state of a client that keeps none."""
    del model, replica, key
    return ()


def _any_bound(bound: float) -> float:
    del bound
    return math.inf


class Uplink(NamedTuple):
    """What happens to a value on its way to the server; see `core.uplinks`."""

    init: contracts.LinkInit  # (like) -> state
    encode: contracts.Encode  # (value, replica, state, ctx) -> (message, state), on the client
    decode: contracts.Decode  # (message, like) -> value, on the server
    # (norm bound of what comes in) -> bound of what decodes; inf if none holds
    bound: contracts.NormBound = _any_bound
    first: bool = False  # acts on values, so no link may come before it in a chain
    remembers: bool = False  # makes up in one round for what an earlier one lost
    # (like) -> like of the message; None: worked out from `encode`, with no replica
    shape: contracts.MessageLike | None = None
    # the sum of messages decodes to the sum of their values, so a server may see the sum alone
    linear: bool = False


class Downlink(NamedTuple):
    """What crosses to the clients, and what they make of it."""

    init: contracts.ReplicaInit  # (shared) -> replica
    encode: contracts.Broadcast  # (shared) -> message
    receive: contracts.Receive  # (message, replica) -> replica, once for all clients


class Aggregate(NamedTuple):
    """How the values of a cohort become one; see `core.aggregates`."""

    init: contracts.AggregateInit  # (like, cohort_size) -> total
    add: contracts.Add  # (total, values[clients, ...], weights[clients]) -> total
    merge: contracts.Merge  # (total, total) -> total
    finish: contracts.Finish  # (total) -> value
    fixed: bool = False  # the denominator is fixed, so that an empty round counts too
    scales: bool = False  # makes values smaller than their mean would, to a bound
    sums: bool = False  # needs no more than the weighted sum of the values, never a single one
    # "value": finishes as one tree like a client's value; "products": what comes of it
    # depends on the values, `Factors`, by their products A B alone; "": anything else
    kind: str = ""


class Server(NamedTuple):
    """How the aggregated value moves what is shared; see `core.servers`."""

    init: contracts.ServerInit  # (shared) -> state
    update: contracts.ServerUpdate  # (value, state, shared) -> (shared, state)


def plain() -> Uplink:
    """An uplink that sends the value as it is."""
    return Uplink(
        init=lambda like: (),
        encode=lambda value, replica, state, ctx: (value, state),
        decode=lambda message, like: message,
        bound=lambda bound: bound,
        linear=True,
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
    init: contracts.Share = as_given  # (params) -> shared
    # (model, replica, state of a client or None) -> (model, params): what is
    # evaluated and exported; with a client's state, that client's own model
    deploy: contracts.Deploy = as_is
    access: Mapping[str, Access] = {"target": Access.GRADIENTS}
    # (shared) -> a tree like the value that a client uploads
    value_like: contracts.ValueLike = as_given
    # what may not be put around it, as it would no longer compute what it says, and why
    refuses: Mapping[Around, str] = {}
    # (value, replica) -> Reading: for the simulator's telemetry, and for nothing else
    read: contracts.Read = unread
    # heeds the rank of each client, `data.rank`, so that ranks may differ
    ranked: bool = False
