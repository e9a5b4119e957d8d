"""The device executor: the engine's functions, compiled, for one algorithm."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core import access, checked, engine
from fedjax_post.core.aggregates import column
from fedjax_post.core.algorithm import Aggregate, Algorithm, ClientData, PyTree
from fedjax_post.simulate.visit import contexts_of, discounted, fresh_states, visit


class Chunk(NamedTuple):
    """Some clients of one round, side by side in lanes.

    `round` and `discount` are one number for all of them, the rest has a lane for each.
    """

    round: Any  # (), int32: that they started in
    client_ids: Any  # [lanes], int32; -1 for padding
    data: ClientData  # leaves [lanes, ...]
    discount: Any = np.float32(1)  # (): share of their weights that counts


class Stored(NamedTuple):
    """What the store knows of the clients of a chunk."""

    states: engine.ClientState  # leaves [lanes, ...]; zeros for clients never seen
    found: Any  # [lanes], bool


def all_lanes(count: int) -> slice:
    """The lanes of a chunk of `count`."""
    return slice(0, count)


class Programs(NamedTuple):
    """What a host loop calls; one for each way of executing an algorithm."""

    broadcast: Callable  # (state) -> replica
    start: Callable  # (model, replica, data, num_lanes) -> total
    visit: Callable  # (model, replica, total, chunk, stored, run_key) -> (total, states, reports)
    close: Callable  # (total, state) -> (state, {name: ()} of the telemetry)
    unit: int = 1  # chunks have a multiple of so many lanes
    local: Callable[[int], slice] = all_lanes  # (lanes) -> those that this process prepares


def device(algorithm: Algorithm, telemetry: Aggregate = engine.NO_TELEMETRY) -> Programs:
    """Compiled programs; a chunk's clients are vmapped and its total is donated."""
    return Programs(
        broadcast=jax.jit(partial(engine.broadcast, algorithm)),
        start=jax.jit(partial(start, algorithm, telemetry=telemetry), static_argnums=3),
        visit=jax.jit(partial(visit_chunk, algorithm, telemetry=telemetry), donate_argnums=2),
        close=jax.jit(partial(close, algorithm, telemetry=telemetry)),
    )


def visit_chunk(
    algorithm: Algorithm,
    model: PyTree,
    replica: PyTree,
    total: engine.Total,
    chunk: Chunk,
    stored: Stored,
    run_key: jax.Array,
    telemetry: Aggregate = engine.NO_TELEMETRY,
) -> tuple[engine.Total, engine.ClientState, engine.Report]:
    """`visit` of a chunk, from the keys of the run and with states for clients never seen."""
    model = access.views(model, algorithm.access)
    ids = chunk.client_ids
    fresh = fresh_states(algorithm, model, replica, chunk.data, run_key, ids)
    states = jax.tree.map(partial(_choose, stored.found), stored.states, fresh)
    contexts = contexts_of(run_key, chunk.round, ids)
    algorithm = discounted(algorithm, chunk.discount)
    return visit(algorithm, model, replica, total, states, chunk.data, contexts, telemetry)


def start(
    algorithm: Algorithm,
    model: PyTree,
    replica: PyTree,
    data: ClientData,
    num_lanes: int,
    telemetry: Aggregate = engine.NO_TELEMETRY,
) -> engine.Total:
    """An empty total for the values of clients with `data` (leaves `[lanes, ...]`)."""
    first = jax.tree.map(lambda x: x[0], data)
    like = engine.value_like(algorithm, access.views(model, algorithm.access), replica, first)
    total = engine.init_total(algorithm, like, num_lanes)
    reading = checked.shapes(algorithm, "read", like, replica)
    return total._replace(telemetry=telemetry.init(reading, num_lanes))


def close(
    algorithm: Algorithm,
    total: engine.Total,
    state: engine.State,
    telemetry: Aggregate = engine.NO_TELEMETRY,
) -> tuple[engine.State, dict[str, jax.Array]]:
    """The state after a round, `finish`, then `serve`, and what the telemetry saw."""
    seen = telemetry.finish(total.telemetry)
    return engine.serve(algorithm, engine.finish(algorithm, total), state), seen


def _choose(found: jax.Array, stored: jax.Array, fresh: jax.Array) -> jax.Array:
    return jnp.where(column(jnp.asarray(found), fresh), stored, fresh)
