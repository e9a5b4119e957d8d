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
from fedjax_post.core.values import Added as Added
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
    """Returns the empty state of a client that keeps no state."""
    del model, replica, key
    return ()


def _any_bound(bound: float) -> float:
    del bound
    return math.inf


class Uplink(NamedTuple):
    """How a client's value becomes a message and a value again; see `core.uplinks`."""

    init: contracts.LinkInit  # (like) -> state
    encode: contracts.Encode  # (value, replica, state, ctx) -> (message, state), on the client
    decode: contracts.Decode  # (message, like) -> value, on the server
    # (norm bound of what comes in) -> bound of what decodes; inf if none holds
    bound: contracts.NormBound = _any_bound
    first: bool = False  # acts on values, so no link may come before it in a chain
    remembers: bool = False  # its state carries losses of earlier rounds to later ones
    # (like) -> like of the message; None: inferred by tracing `encode` without a replica
    shape: contracts.MessageLike | None = None
    # the sum of messages decodes to the sum of their values, so a server may see the sum alone
    linear: bool = False


class Downlink(NamedTuple):
    """How the shared variables become a message to all clients, and the message a replica."""

    init: contracts.ReplicaInit  # (shared) -> replica
    encode: contracts.Broadcast  # (shared) -> message
    receive: contracts.Receive  # (message, replica) -> replica, once for all clients


class Aggregate(NamedTuple):
    """How the values of a cohort are combined into one; see `core.aggregates`."""

    init: contracts.AggregateInit  # (like, cohort_size) -> total
    add: contracts.Add  # (total, values[clients, ...], weights[clients]) -> total
    merge: contracts.Merge  # (total, total) -> total
    finish: contracts.Finish  # (total) -> value
    fixed: bool = False  # the denominator is fixed, so an empty round also changes the server
    scales: bool = False  # reduces values, for example to a bound on their norm
    sums: bool = False  # needs only the weighted sum of the values, never a single one
    # "value": finishes as one tree like a client's value; "products": values are `Factors`, and
    # the result depends only on their products A B; "": anything else
    kind: str = ""


class Server(NamedTuple):
    """How the aggregated value changes the shared variables; see `core.servers`."""

    init: contracts.ServerInit  # (shared) -> state
    update: contracts.ServerUpdate  # (value, state, shared) -> (shared, state)


def plain() -> Uplink:
    """Returns an uplink that sends the value unchanged."""
    return Uplink(
        init=lambda like: (),
        encode=lambda value, replica, state, ctx: (value, state),
        decode=lambda message, like: message,
        bound=lambda bound: bound,
        linear=True,
    )


def whole() -> Downlink:
    """Returns a downlink that sends the shared variables unchanged."""
    return Downlink(
        init=lambda shared: shared,
        encode=lambda shared: shared,
        receive=lambda message, replica: message,
    )


def nothing() -> Downlink:
    """Returns a downlink that sends nothing: clients keep the initial shared variables."""
    return Downlink(lambda shared: shared, lambda shared: (), lambda message, replica: replica)


def idle() -> Server:
    """Returns a server that never changes the shared variables."""
    return Server(lambda shared: (), lambda value, state, shared: (shared, state))


def as_is(model: PyTree, replica: PyTree, state: PyTree = None) -> tuple[PyTree, PyTree]:
    """Returns the model and the replica: what most algorithms deploy.

    Args:
      model: the frozen model.
      replica: what every client holds.
      state: of one client; it is not used.
    """
    del state
    return model, replica


def unread(value: PyTree, replica: PyTree) -> Reading:
    """Returns an empty reading, for values that show nothing to telemetry."""
    del value, replica
    return Reading()


def as_change(value: PyTree, replica: PyTree) -> Reading:
    """Returns the reading of a value that is the client's change of the replica."""
    return Reading(value, jax.tree.map(jnp.add, replica, value))


def as_given(params: PyTree) -> PyTree:
    """Returns the parameters unchanged, as what is shared."""
    return params


class Around(enum.Enum):
    """Additions to an algorithm, which it can refuse; see `core.compose`."""

    LINK = "another link to the server"
    MEMORY = "a link that sends in later rounds what it lost in earlier ones"
    SCALE = "a bound or a fixed denominator, which scales values down: 0 must mean no change"
    RULE = "another aggregate instead of its mean"
    EQUAL = "a mean with equal weights of all clients"
    NOISE = "noise on the mean; see `privacy.noise`"
    MASKS = "masks under which only a sum can be read; see `privacy.secure`"
    STALE = "values of clients that started in earlier rounds; see `simulate.asynchronous`"


class Algorithm(NamedTuple):
    """A federated algorithm as data; the head of the module describes its parts."""

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
    # additions with which it would no longer compute what it states -> the reason
    refuses: Mapping[Around, str] = {}
    # (value, replica) -> Reading: only for the simulator's telemetry
    read: contracts.Read = unread
    # uses the rank of each client, `data.rank`, so that ranks may differ
    ranked: bool = False
