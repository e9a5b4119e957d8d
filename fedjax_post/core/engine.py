"""The engine: pure functions for one client and for the server.

A round consists of `broadcast`, one `visit` for each chunk of clients, `finish` and `serve`. All
but `visit` are in this module; `simulate.visit` maps `visit_client` over a chunk.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core import access, checked, wire
from fedjax_post.core.algorithm import (
    Added,
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
    """The state of a federation between rounds."""

    shared: PyTree
    replica: PyTree  # what every client holds after the last broadcast
    server: PyTree


class ClientState(NamedTuple):
    """The state of one client between its visits."""

    local: PyTree
    uplink: PyTree


class Total(NamedTuple):
    """The aggregate of the clients so far, and their weight."""

    value: PyTree
    weight: jax.Array  # (), float32
    telemetry: PyTree = ()  # of `core.telemetry`


class Report(NamedTuple):
    """What the simulator sees of one visit; it never enters client or server code."""

    weight: jax.Array  # (), float32: 0 for padding and for a dropped client
    kept: jax.Array  # (), bool: a real client with a finite update
    num_steps: jax.Array  # (), float32
    metrics: Metrics
    bill: Bill | Added | tuple[()] = ()
    message: PyTree = ()  # only where the run records what was sent


class WireBytes(NamedTuple):
    """The exact bytes of one client in one round."""

    down: int
    up: int


def init(algorithm: Algorithm, params: PyTree) -> State:
    """Returns the state of a federation that starts from `params`."""
    shared = call(algorithm, "init", params)
    replica = call(algorithm, "downlink.init", shared)
    return State(shared, replica, call(algorithm, "server.init", shared))


def broadcast(algorithm: Algorithm, state: State) -> PyTree:
    """Returns the replica that every client of this round holds."""
    message = call(algorithm, "downlink.encode", state.shared)
    return call(algorithm, "downlink.receive", message, state.replica)


def init_client(
    algorithm: Algorithm, model: PyTree, replica: PyTree, data: ClientData, ctx: Context
) -> ClientState:
    """Returns the state of a client before its first visit.

    Args:
      algorithm: the algorithm.
      model: the frozen model, as the algorithm's access allows.
      replica: what the client holds of the shared variables.
      data: the data of its first visit, for shapes.
      ctx: its key, round and id.
    """
    local = call(algorithm, "client.init", model, replica, ctx.key)
    like = value_like(algorithm, model, replica, data)
    return ClientState(local, call(algorithm, "uplink.init", like))


def value_like(algorithm: Algorithm, model: PyTree, replica: PyTree, data: ClientData) -> PyTree:
    """Returns the shapes and dtypes of the value that a client uploads; nothing is computed.

    The algorithm's own functions are traced. jax caches traces by function, so a client's update
    is traced only once, however often this is called.

    Args:
      algorithm: the algorithm.
      model: the frozen model, or its shapes.
      replica: what a client holds, or its shapes.
      data: one client's data, or its shapes.
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
    """Returns one client's message, its next state and a report.

    A padding lane (client id -1) and a client whose value, message or decoded message is not
    finite get weight 0 and keep their previous state.

    Args:
      algorithm: the algorithm.
      model: the frozen model, as the algorithm's access allows.
      replica: what the client holds of the shared variables.
      state: the client's state before the visit.
      data: what it trains on.
      ctx: its key, round and id; the key is split for the update and the link.
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


def _bill(upload: Upload, message: PyTree) -> Bill | Added | tuple[()]:
    """Returns the client's bill; a message with another layout than the value is billed whole."""
    layout = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    if not isinstance(upload.bill, Bill) or layout(upload.value) == layout(message):
        return upload.bill
    whole = wire.num_bytes(message) + 4  # and the weight
    return Bill(upload.bill[0], wire.pieces((whole, jnp.int32(1))))


def init_total(algorithm: Algorithm, like: PyTree, num_lanes: int) -> Total:
    """Returns an empty total of values.

    Args:
      algorithm: the algorithm.
      like: a tree like one decoded value.
      num_lanes: the largest number of clients.
    """
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
    """Returns the total with the values of further clients.

    Args:
      algorithm: the algorithm.
      total: of the clients before.
      values: decoded values, leaves [clients, ...].
      weights: [clients], float32; 0 for padding and dropped clients.
      replica: what these clients held.
      telemetry: what is measured beside the aggregate, see `core.telemetry`.
    """
    read = jax.vmap(partial(call, algorithm, "read"), (0, None), axis_size=len(weights))
    return Total(
        call(algorithm, "aggregate.add", total.value, values, weights),
        total.weight + weights.sum(),
        telemetry.add(total.telemetry, read(values, replica), weights),
    )


def merge(
    algorithm: Algorithm, one: Total, other: Total, *, telemetry: Aggregate = NO_TELEMETRY
) -> Total:
    """Returns the total of the clients of two totals, those of `one` first.

    Args:
      algorithm: the algorithm.
      one: a total.
      other: a total of other clients.
      telemetry: as for `add`.
    """
    return Total(
        call(algorithm, "aggregate.merge", one.value, other.value),
        one.weight + other.weight,
        telemetry.merge(one.telemetry, other.telemetry),
    )


def finish(algorithm: Algorithm, total: Total) -> Total:
    """Returns the aggregated value, with the weight of its clients."""
    return total._replace(value=call(algorithm, "aggregate.finish", total.value))


def serve(algorithm: Algorithm, outcome: Total, state: State) -> State:
    """Returns the next state; without clients it is unchanged, unless the denominator is fixed.

    Args:
      algorithm: the algorithm.
      outcome: of `finish`.
      state: before the round.
    """
    shared, server = call(algorithm, "server.update", outcome.value, state.server, state.shared)
    moved = (outcome.weight > 0) | algorithm.aggregate.fixed
    keep = lambda new, old: jnp.where(moved, new, old)
    shared, server = jax.tree.map(keep, (shared, server), (state.shared, state.server))
    return State(shared, state.replica, server)


def deployed(
    algorithm: Algorithm, model: PyTree, state: State, client: ClientState | None = None
) -> tuple[PyTree, PyTree]:
    """Returns `(model, params)` that are evaluated and exported.

    Args:
      algorithm: the algorithm.
      model: the frozen model, or a model for each role.
      state: of the federation.
      client: state of one client, for its personal model; None for the common model.
    """
    local = None if client is None else client.local
    return call(algorithm, "deploy", model, broadcast(algorithm, state), local)


def deploys_client(
    algorithm: Algorithm, model: PyTree, params: PyTree, client: ClientState
) -> bool:
    """Returns whether what is deployed for a client depends on that client's state.

    It does for Ditto. It does not for SCAFFOLD, whose clients keep control variates.

    Args:
      algorithm: the algorithm.
      model: the frozen model, or a model for each role.
      params: where training starts, or its shapes.
      client: state of one client, or its shapes.
    """

    def deploy(client, params):
        return jax.tree.leaves(deployed(algorithm, model, init(algorithm, params), client))

    program = jax.make_jaxpr(deploy)(client, params).jaxpr
    own = program.invars[: len(jax.tree.leaves(client))]
    used = {id(v) for eqn in program.eqns for v in eqn.invars} | {id(v) for v in program.outvars}
    return any(id(v) in used for v in own)


def check(
    algorithm: Algorithm, model: PyTree, params: PyTree, data: ClientData, *, num_lanes: int
) -> None:
    """Checks that the functions of an algorithm fit together, from the shapes of one round.

    Args:
      algorithm: the algorithm.
      model: the frozen model, or a model for each role.
      params: where training starts, or its shapes.
      data: one client's data, or its shapes.
      num_lanes: the largest number of clients of the aggregate, at least 1.

    Raises:
      TypeError, ValueError: with the field of the algorithm, such as "server.update", what
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
    """Returns the exact bytes of one client's messages in one round; nothing is computed.

    If clients make a `Bill`, the records use that instead. It is less for a part of a message
    (ranks below R, stacks of a few components), and more for the messages of several rounds
    (`de_com_fl`).

    Args:
      algorithm: the algorithm; the upload's weight is counted too.
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
    """Returns the message and the weight that a client sends on its first visit.

    Args:
      algorithm: the algorithm.
      model: the frozen model, as the algorithm's access allows.
      replica: what the client holds of the shared variables.
      data: what it trains on.
    """
    ctx = no_context()
    state = init_client(algorithm, model, replica, data, ctx)
    message, _, report = visit_client(algorithm, model, replica, state, data, ctx)
    return message, report.weight


def _all_finite(tree: PyTree) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all() if floats else jnp.array(True)
