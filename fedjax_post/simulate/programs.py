"""The device executor: the engine's functions, compiled for one algorithm."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core import access, checked, engine
from fedjax_post.core.aggregates import column
from fedjax_post.core.algorithm import Aggregate, Algorithm, ClientData, PyTree
from fedjax_post.simulate.visit import contexts_of, discount_weights, fresh_states, visit


class Chunk(NamedTuple):
    """Some clients that began in one round, one in each lane."""

    round: Any  # (), int32: in which they began
    client_ids: Any  # [lanes], int32; -1 for padding
    data: ClientData  # leaves [lanes, ...]
    discount: Any = np.float32(1)  # (): factor on their weights
    first: Any = np.int32(0)  # (), int32: number of the round's clients in chunks before this one
    cohort: Any = np.int32(1)  # (), int32: number of the round's clients


class Stored(NamedTuple):
    """The states in the store of the clients of a chunk."""

    states: engine.ClientState  # leaves [lanes, ...]; zeros for clients never seen
    found: Any  # [lanes], bool


def all_lanes(count: int) -> slice:
    """Returns all lanes of a chunk of `count`."""
    return slice(0, count)


class Programs(NamedTuple):
    """The functions that the loop over rounds calls; an executor provides them."""

    broadcast: Callable  # (state) -> replica
    start: Callable  # (model, replica, data, num_lanes) -> total
    visit: Callable  # (model, replica, total, chunk, stored, run_key) -> (total, states, reports)
    close: Callable  # (total, state) -> (state, {name: ()} of the telemetry)
    unit: int = 1  # the number of lanes of a chunk is a multiple of this
    local: Callable[[int], slice] = all_lanes  # (lanes) -> those that this process prepares


def device(
    algorithm: Algorithm,
    telemetry: Aggregate = engine.NO_TELEMETRY,
    *,
    keep_messages: bool = False,
) -> Programs:
    """Returns compiled programs; a chunk's clients are vmapped and the total is donated.

    Args:
      algorithm: the algorithm.
      telemetry: see `core.telemetry`.
      keep_messages: whether reports hold the clients' messages.
    """
    visit = visit_chunk if keep_messages else without_messages(visit_chunk)
    return Programs(
        broadcast=jax.jit(partial(engine.broadcast, algorithm)),
        start=jax.jit(partial(start, algorithm, telemetry=telemetry), static_argnums=3),
        visit=jax.jit(partial(visit, algorithm, telemetry=telemetry), donate_argnums=2),
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
    """Returns the result of `visit` for a chunk, with fresh states for clients never seen.

    Args:
      algorithm: the algorithm.
      model: the frozen model.
      replica: what every client holds.
      total: the aggregate so far.
      chunk: the clients and their data.
      stored: their states in the store.
      run_key: key of the run, from which all clients' keys are derived.
      telemetry: see `core.telemetry`.

    Returns:
      The total, the next states and the reports, with the clients' messages; the last two have
      leaves `[lanes, ...]`.
    """
    model = access.views(model, algorithm.access)
    ids = chunk.client_ids
    fresh = fresh_states(algorithm, model, replica, chunk.data, run_key, ids)
    states = jax.tree.map(partial(_choose, stored.found), stored.states, fresh)
    contexts = contexts_of(run_key, chunk.round, ids, first=chunk.first, cohort=chunk.cohort)
    algorithm = discount_weights(algorithm, chunk.discount)
    return visit(algorithm, model, replica, total, states, chunk.data, contexts, telemetry)


def without_messages(visit: Callable) -> Callable:
    """Returns `visit_chunk`, or what stands for it, with reports that hold no messages."""

    def visit_without(*args, **kwargs):
        total, states, reports = visit(*args, **kwargs)
        return total, states, reports._replace(message=())

    return visit_without


def start(
    algorithm: Algorithm,
    model: PyTree,
    replica: PyTree,
    data: ClientData,
    num_lanes: int,
    telemetry: Aggregate = engine.NO_TELEMETRY,
) -> engine.Total:
    """Returns an empty total.

    Args:
      algorithm: the algorithm.
      model: the frozen model.
      replica: what every client holds.
      data: of some clients, leaves `[lanes, ...]`; only shapes matter.
      num_lanes: number of lanes of the whole round.
      telemetry: see `core.telemetry`.
    """
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
    """Returns the state after a round (`finish`, then `serve`), and the telemetry's results.

    Args:
      algorithm: the algorithm.
      total: the aggregate of the round.
      state: before the round.
      telemetry: see `core.telemetry`.
    """
    seen = telemetry.finish(total.telemetry)
    return engine.serve(algorithm, engine.finish(algorithm, total), state), seen


def _choose(found: jax.Array, stored: jax.Array, fresh: jax.Array) -> jax.Array:
    return jnp.where(column(jnp.asarray(found), fresh), stored, fresh)
