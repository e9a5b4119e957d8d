"""`visit`: one chunk of clients under `jax.vmap`, the compiled unit of a simulation."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_post.core import engine
from fedjax_post.core.algorithm import Aggregate, Algorithm, ClientData, Context, PyTree
from fedjax_post.core.checked import call


def visit(
    algorithm: Algorithm,
    model: PyTree,
    replica: PyTree,
    total: engine.Total,
    states: engine.ClientState,
    data: ClientData,
    contexts: Context,
    telemetry: Aggregate = engine.NO_TELEMETRY,
) -> tuple[engine.Total, engine.ClientState, engine.Report]:
    """Returns the total with the messages of a chunk's clients added, and their next states.

    The model and the replica are not mapped, so a product with the model's weights is a single
    product for all clients of the chunk.

    Args:
      algorithm: the algorithm.
      model: the frozen model.
      replica: what every client holds.
      total: the aggregate so far.
      states: leaves `[clients, ...]`.
      data: leaves `[clients, ...]`.
      contexts: leaves `[clients]`; client id -1 marks padding.
      telemetry: an aggregate of `Reading`s, see `core.telemetry`.

    Returns:
      The total, the states and the reports, with the clients' messages; the last two
      `[clients, ...]`.
    """
    first = jax.tree.map(lambda x: x[0], data)
    like = engine.value_like(algorithm, model, replica, first)

    def one(state, data, ctx):
        visited = engine.visit_client(algorithm, model, replica, state, data, ctx)
        message, state, report = visited
        value = call(algorithm, "uplink.decode", message, like)
        return value, state, report._replace(message=message)

    values, states, reports = jax.vmap(one)(states, data, contexts)
    total = engine.add(
        algorithm, total, values, reports.weight, replica=replica, telemetry=telemetry
    )
    return total, states, reports


def discount_weights(algorithm: Algorithm, factor: jax.Array) -> Algorithm:
    """Returns the algorithm with its clients' weights multiplied by `factor`, () float32."""

    def update(model, replica, state, data, ctx):
        visit = model, replica, state, data, ctx
        upload, state, metrics = algorithm.client.update(*visit)
        return upload._replace(weight=factor * upload.weight), state, metrics

    return algorithm._replace(client=algorithm.client._replace(update=update))


def contexts_of(
    run_key: jax.Array,
    round: jax.Array,
    client_ids: jax.Array,
    *,
    first: Any = 0,
    cohort: Any = None,
) -> Context:
    """Returns contexts `[clients]`, with each key folded from (run key, round, client id).

    Args:
      run_key: key of the run.
      round: (), int32.
      client_ids: `[clients]` int32.
      first: (), int32: place of the first of them in the round.
      cohort: (), int32: number of clients of the round; None: these are all.
    """
    round = jnp.asarray(round, jnp.int32)
    fold = lambda i: jax.random.fold_in(jax.random.fold_in(run_key, round), i)
    fill = lambda x: jnp.full(client_ids.shape, jnp.asarray(x, jnp.int32))
    places = fill(first) + jnp.arange(len(client_ids), dtype=jnp.int32)
    cohorts = fill(len(client_ids) if cohort is None else cohort)
    return Context(jax.vmap(fold)(client_ids), fill(round), client_ids, places, cohorts)


def fresh_states(
    algorithm: Algorithm,
    model: PyTree,
    replica: PyTree,
    data: ClientData,
    run_key: jax.Array,
    client_ids: jax.Array,
) -> engine.ClientState:
    """Returns states `[clients, ...]` before a first visit; their keys use round -1.

    Args:
      algorithm: the algorithm.
      model: the frozen model.
      replica: what every client holds.
      data: leaves `[clients, ...]`.
      run_key: key of the run.
      client_ids: `[clients]` int32.
    """
    contexts = contexts_of(run_key, jnp.int32(-1), client_ids)
    init = lambda data, ctx: engine.init_client(algorithm, model, replica, data, ctx)
    return jax.vmap(init)(data, contexts)
