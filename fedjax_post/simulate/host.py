"""The host executor: runs an algorithm without compilation, one client at a time.

It is meant for models that are queried over a network, and for debugging: prints and breakpoints
inside an algorithm see real values, and an error names the client, the round and the function.

A model with a method `at(round, client_id)` is bound to each client before its visit, so that it
can keep a journal. To determine shapes it is called unbound, with tracers. A client whose model
does not answer is dropped from the round if the error allows it (`UnansweredError.drop`), like a
client whose update is not finite. Any other error ends the run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core import access, engine
from fedjax_post.core.algorithm import Aggregate, Algorithm, no_context
from fedjax_post.core.checked import call
from fedjax_post.simulate import programs, stopping
from fedjax_post.simulate.visit import contexts_of, discount_weights


def host(
    algorithm: Algorithm,
    telemetry: Aggregate = engine.NO_TELEMETRY,
    *,
    keep_messages: bool = False,
) -> programs.Programs:
    """Returns programs that run without compilation, one client at a time.

    Results equal those of `device` up to the order of floating-point sums.

    Args:
      algorithm: the algorithm.
      telemetry: see `core.telemetry`.
      keep_messages: whether reports hold the clients' messages.
    """

    def visit_chunk(model, replica, total, chunk, stored, run_key):
        counted = discount_weights(algorithm, chunk.discount)
        first = jax.tree.map(lambda x: x[0], chunk.data)
        unbound = access.views(model, algorithm.access)
        like = engine.value_like(algorithm, unbound, replica, first)
        lanes: list[Any] = []  # None: dropped
        # Padding comes after the real clients, and nothing is computed for it.
        for lane in range(int((chunk.client_ids >= 0).sum())):
            stopping.check()
            one = jax.tree.map(lambda x, lane=lane: x[lane], (stored, chunk.data))
            client_id = chunk.client_ids[lane]
            seat = chunk.first + lane, chunk.cohort
            contexts = [_context(run_key, r, client_id, *seat) for r in (-1, chunk.round)]
            bound = access.views(_bound(model, chunk.round, client_id), algorithm.access)
            try:
                message, state, report = _visit(counted, bound, replica, one, contexts, like)
            except Exception as error:
                if not (isinstance(error, access.UnansweredError) and error.drop):
                    error.add_note(f"client {client_id}, round {chunk.round}")
                    raise
                lanes.append(None)
                continue
            kept = message if keep_messages else ()
            lanes.append([state, report._replace(message=kept)])
            value = call(algorithm, "uplink.decode", message, like)
            values = jax.tree.map(lambda x: x[None], value)
            weight = report.weight[None]
            total = engine.add(
                algorithm, total, values, weight, replica=replica, telemetry=telemetry
            )
        lanes += [None] * (len(chunk.client_ids) - len(lanes))
        if any(lane is None for lane in lanes):
            blank = _blank(counted, unbound, replica, (stored, chunk.data), like, keep_messages)
            lanes = [blank if lane is None else lane for lane in lanes]
        states, reports = jax.tree.map(lambda *x: np.stack(x), *lanes)
        return total, states, reports

    return programs.Programs(
        broadcast=_eager(partial(engine.broadcast, algorithm)),
        start=_eager(partial(programs.start, algorithm, telemetry=telemetry)),
        visit=_eager(visit_chunk),
        close=_eager(partial(programs.close, algorithm, telemetry=telemetry)),
    )


def _visit(algorithm, model, replica, one, contexts, like):
    """Returns a client's message, its next state and a report."""
    stored, data = one
    first_ctx, ctx = contexts
    state = stored.states
    if not stored.found:
        # As `engine.init_client`, but reuses the shapes of `like`.
        local = call(algorithm, "client.init", model, replica, first_ctx.key)
        state = engine.ClientState(local, call(algorithm, "uplink.init", like))
    return engine.visit_client(algorithm, model, replica, state, data, ctx)


def _blank(algorithm, model, replica, lanes, like, keep_messages):
    """Returns the state and report, all zeros, of a lane of padding or of a dropped client.

    Only shapes are determined, so that a hosted model is not queried.
    """
    stored, data = jax.tree.map(lambda x: x[0], lanes)

    def rest(replica, states, data):
        one = stored._replace(states=states), data
        nobody = no_context(), no_context()
        message, state, report = _visit(algorithm, model, replica, one, nobody, like)
        return state, report._replace(message=message if keep_messages else ())

    shapes = jax.eval_shape(rest, replica, stored.states, data)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), list(shapes))


def _bound(models: Any, round: int, client_id: int) -> Any:
    """Returns the model, or the model of each role, bound to a visit if it can be."""
    if isinstance(models, dict):
        return {role: _bound(model, round, client_id) for role, model in models.items()}
    bind = getattr(models, "at", None)  # the attribute `at` of an array is not callable
    return bind(int(round), int(client_id)) if callable(bind) else models


def _context(run_key, round, client_id, place, cohort):
    ids = jnp.asarray([client_id], jnp.int32)
    contexts = contexts_of(run_key, jnp.int32(round), ids, first=place, cohort=cohort)
    return jax.tree.map(lambda x: x[0], contexts)


def _eager(fn: Callable) -> Callable:
    def eager(*args):
        with jax.disable_jit():
            return fn(*args)

    return eager
