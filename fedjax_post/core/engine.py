"""The engine's pure functions for one client and for the server.

A round is `broadcast`, one `visit` per chunk of clients, `finish`, `serve`. All
but `visit` are here; `simulate.visit` maps `visit_client` over a chunk.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core import access, checked, wire
from fedjax_post.core.algorithm import (
    Aggregate,
    Algorithm,
    Bill,
    ClientData,
    Context,
    Metrics,
    PyTree,
    Upload,
    as_change,
    as_given,
    no_context,
)
from fedjax_post.core.checked import call
from fedjax_post.core.telemetry import none

NO_TELEMETRY = none()


class State(NamedTuple):
    """What the federation holds between rounds."""

    shared: PyTree
    replica: PyTree  # what every client held after the last broadcast
    server: PyTree


class ClientState(NamedTuple):
    """What one client holds between its visits."""

    local: PyTree
    uplink: PyTree


class Total(NamedTuple):
    """The aggregate so far, and the weight in it."""

    value: PyTree
    weight: jax.Array  # (), float32
    telemetry: PyTree = ()  # of `core.telemetry`, beside the aggregate


class Report(NamedTuple):
    """The simulator's view of one visit; it never enters client or server code."""

    weight: jax.Array  # (), float32: 0 for padding and for a dropped client
    kept: jax.Array  # (), bool: a real client whose update was finite
    num_steps: jax.Array  # (), float32
    metrics: Metrics
    bill: Bill | tuple[()] = ()


class WireBytes(NamedTuple):
    """Exact bytes of one client in one round."""

    down: int
    up: int


def init(algorithm: Algorithm, params: PyTree) -> State:
    """The state of a federation that starts from `params`."""
    shared = call(algorithm, "init", params)
    replica = call(algorithm, "downlink.init", shared)
    return State(shared, replica, call(algorithm, "server.init", shared))


def broadcast(algorithm: Algorithm, state: State) -> PyTree:
    """The replica that every client of this round holds."""
    message = call(algorithm, "downlink.encode", state.shared)
    return call(algorithm, "downlink.receive", message, state.replica)


def init_client(
    algorithm: Algorithm, model: PyTree, replica: PyTree, data: ClientData, ctx: Context
) -> ClientState:
    """The state of a client before its first visit."""
    local = call(algorithm, "client.init", model, replica, ctx.key)
    like = value_like(algorithm, model, replica, data)
    return ClientState(local, call(algorithm, "uplink.init", like))


def value_like(algorithm: Algorithm, model: PyTree, replica: PyTree, data: ClientData) -> PyTree:
    """Shapes and dtypes of the value that a client uploads; nothing is computed.

    It asks for shapes of the algorithm's own functions, so that jax, which remembers them
    by function, traces a client's update once for all who ask.
    """
    ctx = no_context()
    local = checked.shapes(algorithm, "client.init", model, replica, ctx.key)
    return checked.shapes(algorithm, "client.update", model, replica, local, data, ctx)[0].value


def visit_client(
    algorithm: Algorithm,
    model: PyTree,
    replica: PyTree,
    state: ClientState,
    data: ClientData,
    ctx: Context,
) -> tuple[PyTree, ClientState, Report]:
    """One client's round: its message, its next state and a report.

    A padding lane (client id -1) and a client whose value, message or decoded message is
    not finite get weight 0 and keep the state that they came with.
    """
    update_key, link_key = jax.random.split(ctx.key)
    ctx_of = lambda key: ctx._replace(key=key)
    upload, local, metrics = call(
        algorithm, "client.update", model, replica, state.local, data, ctx_of(update_key)
    )
    message, link = call(
        algorithm, "uplink.encode", upload.value, replica, state.uplink, ctx_of(link_key)
    )
    decoded = algorithm.uplink.decode(message, upload.value)
    kept = (ctx.client_id >= 0) & _all_finite((upload, message, decoded))
    weight = jnp.where(kept, upload.weight, 0).astype(jnp.float32)
    keep = lambda new, old: jnp.where(kept, new, old)
    state = jax.tree.map(keep, ClientState(local, link), state)
    num_steps = jnp.sum(jnp.asarray(data.step_mask), dtype=jnp.float32)
    return message, state, Report(weight, kept, num_steps, metrics, _bill(upload, message))


def _bill(upload: Upload, message: PyTree) -> Bill | tuple[()]:
    """The client's bill, if it made one; a message laid out unlike the value is billed whole."""
    layout = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    if not upload.bill or layout(upload.value) == layout(message):
        return upload.bill
    whole = wire.num_bytes(message) + 4  # and the weight
    return Bill(upload.bill[0], wire.pieces((whole, jnp.int32(1))))


def init_total(algorithm: Algorithm, like: PyTree, num_lanes: int) -> Total:
    """An empty aggregate of values like `like`, for up to `num_lanes` clients."""
    return Total(call(algorithm, "aggregate.init", like, num_lanes), jnp.zeros(()))


def add(
    algorithm: Algorithm,
    total: Total,
    values: PyTree,
    weights: jax.Array,
    *,
    replica: PyTree,
    telemetry: Aggregate = NO_TELEMETRY,
) -> Total:
    """The total with the decoded values `[clients, ...]` of clients that held `replica`."""
    read = jax.vmap(partial(call, algorithm, "read"), (0, None), axis_size=len(weights))
    return Total(
        call(algorithm, "aggregate.add", total.value, values, weights),
        total.weight + weights.sum(),
        telemetry.add(total.telemetry, read(values, replica), weights),
    )


def merge(
    algorithm: Algorithm, one: Total, other: Total, *, telemetry: Aggregate = NO_TELEMETRY
) -> Total:
    """One total of the clients of two, those of `one` first."""
    return Total(
        call(algorithm, "aggregate.merge", one.value, other.value),
        one.weight + other.weight,
        telemetry.merge(one.telemetry, other.telemetry),
    )


def finish(algorithm: Algorithm, total: Total) -> Total:
    """The aggregated value, beside the weight that stands behind it."""
    return total._replace(value=call(algorithm, "aggregate.finish", total.value))


def serve(algorithm: Algorithm, outcome: Total, state: State) -> State:
    """The next state; the same one if nobody took part, unless the denominator is fixed."""
    shared, server = call(algorithm, "server.update", outcome.value, state.server, state.shared)
    moved = (outcome.weight > 0) | algorithm.aggregate.fixed
    keep = lambda new, old: jnp.where(moved, new, old)
    shared, server = jax.tree.map(keep, (shared, server), (state.shared, state.server))
    return State(shared, state.replica, server)


def deployed(
    algorithm: Algorithm, model: PyTree, state: State, client: ClientState | None = None
) -> tuple[PyTree, PyTree]:
    """`(model, params)` that a client would serve now; with its state, its personal ones."""
    local = None if client is None else client.local
    return call(algorithm, "deploy", model, broadcast(algorithm, state), local)


def check(
    algorithm: Algorithm, model: PyTree, params: PyTree, data: ClientData, *, num_lanes: int
) -> None:
    """Refuses an algorithm whose functions do not fit together, from the shapes of one round.

    Args:
      algorithm: what is checked.
      model: the frozen model, or a model for each role.
      params: where training starts, or its shapes.
      data: one client's data, or its shapes.
      num_lanes: room for clients in the round's aggregate, at least 1.

    Raises:
      TypeError, ValueError: naming the field of the algorithm, such as "server.update", what
        it must take or return, and what it does.
      AccessError: if it needs more of a model than that grants.
    """
    checked.check_parts(algorithm)
    view = access.views(model, algorithm.access)
    state = jax.eval_shape(partial(init, algorithm), params)
    replica = jax.eval_shape(partial(broadcast, algorithm), state)
    client = jax.eval_shape(partial(init_client, algorithm), view, replica, data, no_context())
    like = value_like(algorithm, view, replica, data)
    if algorithm.value_like is not as_given:
        declared = checked.shapes(algorithm, "value_like", state.shared)
        checked.check_like("value_like", "a tree like the value of an Upload", declared, like)

    if algorithm.read is as_change:
        name = "an Upload whose value is laid out like the replica, which as_change reads"
        checked.check_like("client.update", name, like, replica)

    def play(state, replica, client, like):
        sent = like, replica, client.uplink, no_context()
        message, _ = call(algorithm, "uplink.encode", *sent)
        value = call(algorithm, "uplink.decode", message, like)
        values = jax.tree.map(lambda x: jnp.stack([x] * num_lanes), value)
        total = init_total(algorithm, value, num_lanes)
        total = add(algorithm, total, values, jnp.ones(num_lanes), replica=replica)
        outcome = finish(algorithm, merge(algorithm, total, total))
        if algorithm.aggregate.kind == "value":
            name = "a value laid out like the clients'"
            checked.check_like("aggregate.finish", name, outcome.value, like)
        state = serve(algorithm, outcome, state)
        return [deployed(algorithm, model, state, held) for held in (None, client)]

    jax.eval_shape(play, state, replica, client, like)


def wire_bytes(algorithm: Algorithm, model: PyTree, state: State, data: ClientData) -> WireBytes:
    """Exact bytes of one client's messages in one round, from shapes; nothing is computed.

    Where clients make a `Bill`, records go by that: less than this for a part of a message
    (ranks below R, stacks of a few components), more for several rounds' (`de_com_fl`).

    Args:
      algorithm: whose messages are counted, the upload's weight included.
      model: the frozen model, or its shapes.
      state: the federation's state, or its shapes.
      data: one client's data, or its shapes.
    """
    down = checked.shapes(algorithm, "downlink.encode", state.shared)
    replica = jax.eval_shape(lambda s: broadcast(algorithm, s), state)
    like, ctx = value_like(algorithm, model, replica, data), no_context()
    link = algorithm.uplink
    encode = lambda value, replica: link.encode(value, replica, link.init(like), ctx)[0]
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    up = jax.eval_shape(encode, like, replica), weight
    return WireBytes(wire.num_bytes(down), wire.num_bytes(up))


def message_of(
    algorithm: Algorithm, model: PyTree, replica: PyTree, data: ClientData
) -> tuple[Any, jax.Array]:
    """What crosses the wire from a client on its first visit: its message and its weight."""
    ctx = no_context()
    state = init_client(algorithm, model, replica, data, ctx)
    message, _, report = visit_client(algorithm, model, replica, state, data, ctx)
    return message, report.weight


def _all_finite(tree: PyTree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all() if floats else jnp.array(True)
