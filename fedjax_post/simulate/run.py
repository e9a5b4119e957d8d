"""`run`: iterates over the rounds of a federation."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_post.core import access, checked, engine
from fedjax_post.core.algorithm import Algorithm, PyTree, no_context
from fedjax_post.core.engine import State
from fedjax_post.data.clients import Clients
from fedjax_post.simulate import (
    asynchronous,
    checkpoint,
    feed,
    processes,
    record,
    recording,
    resume,
    stopping,
    visits,
)
from fedjax_post.simulate.cohort import data_rng, draw, widths_of
from fedjax_post.simulate.identity import identify
from fedjax_post.simulate.keeping import Held, Keep, check_unused, keep_rounds
from fedjax_post.simulate.plan import Plan
from fedjax_post.simulate.programs import Chunk, Programs, Stored
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.simulate.resume import Begun
from fedjax_post.simulate.speeds import slowest
from fedjax_post.simulate.step import Step


class _Job(NamedTuple):
    """A run with its files open."""

    programs: Programs
    model: PyTree
    store: processes.PartedStore
    run_key: jax.Array
    recorder: recording.Recorder | None = None


def run(
    algorithm: Algorithm,
    model: PyTree,
    clients: Clients,
    *,
    params: PyTree,
    rounds: int,
    plan: Plan = Plan(),  # noqa: B008 - immutable
    callbacks: Sequence[Callback] = (),
) -> Iterator[tuple[State, Record]]:
    """Returns an iterator over a federation's state and record after every round.

    With a directory, a run that ends early for any reason (an exception, Ctrl-C, a kill, leaving
    the loop) can be continued with `plan.resume`. On the same machine it then ends with the same
    bits as an uninterrupted run. It must be the same run: seed, data, weights, the cohorts of
    the first rounds and the entries of `plan.identity` are compared, see `identify`.

    Args:
      algorithm: the algorithm.
      model: the frozen model, passed on to the algorithm; any tree.
      clients: the population.
      params: initial parameters: those of an adapter, or all weights.
      rounds: total number of rounds, including those before a resumption.
      plan: how the run is carried out.
      callbacks: called after each round with (state, record); their results are added to the
        record.

    Returns:
      An iterator over (state, record), one pair for each round. `deployed(algorithm, model,
      state)` is what a client would serve.

    Raises:
      ValueError: for an invalid plan, or a directory that belongs to a different run.
      TypeError, ValueError: for an algorithm whose functions do not fit together, naming the
        field, such as "client.update", what it must take or return, and what it does.
      FileExistsError: if the directory contains a run and `resume` is off.
      AccessError: if the algorithm needs more access than the model grants.

    >>> import optax
    >>> from fedjax_post.algorithms import fed_avg
    >>> from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params
    >>> algorithm = fed_avg(toy_loss, optax.sgd(0.1))
    >>> steps = run(algorithm, toy_model(), toy_clients(), params=toy_params(), rounds=2)
    >>> [record["round"] for state, record in steps]
    [0, 1]
    """
    checked.check_parts(algorithm)
    access.views(model, algorithm.access)
    if plan.buffer is not None:
        asynchronous.check(plan.buffer, algorithm, len(clients))
    if plan.buffer is not None and plan.feed is not feed.chunks:
        raise ValueError("a plan with `buffer` uses its own feed; leave `feed` out")
    plan = plan._replace(chunk_size=chunk_size_of(plan, len(clients), rounds))
    check_unused(keep_of(plan))
    recording.recorder(algorithm, plan.recording, plan.directory)
    data = clients.visit(0, data_rng(0, 0, 0))
    num_lanes = max(plan.chunk_size or 1, _first_cohort(plan, len(clients)))
    engine.check(algorithm, model, params, data, num_lanes=num_lanes)
    return _rounds(
        algorithm, model, clients, params=params, rounds=rounds, plan=plan, callbacks=callbacks
    )


def restore(
    directory: str | Path,
    algorithm: Algorithm,
    params: PyTree,
    *,
    identity: Mapping[str, Any] | None = None,
) -> checkpoint.Snapshot | None:
    """Returns the latest intact checkpoint of the run in `directory`; None if it has none.

    Args:
      directory: the run's `plan.directory`.
      algorithm: as given to `run`.
      params: as given to `run`; only shapes matter.
      identity: that the run must have, from `identify`; None: it is not compared.

    Raises:
      DamagedError: if there are checkpoints and all are damaged.
      ValueError: if the run has another identity, naming what differs.
    """
    return resume.restore(Path(directory), engine.init(algorithm, params), identity)


def client_state_like(
    algorithm: Algorithm, model: PyTree, clients: Clients, params: PyTree
) -> PyTree:
    """Returns shapes and dtypes of the state that one client keeps between its visits.

    Args:
      algorithm: as given to `run`.
      model: as given to `run`.
      clients: as given to `run`.
      params: as given to `run`; only shapes matter.
    """

    def make(model, params, data):
        replica = engine.broadcast(algorithm, engine.init(algorithm, params))
        ctx = no_context()
        return engine.init_client(
            algorithm, access.views(model, algorithm.access), replica, data, ctx
        )

    return jax.eval_shape(make, model, params, clients.visit(0, data_rng(0, 0, 0)))


def wire_bytes_of(
    algorithm: Algorithm, model: PyTree, clients: Clients, params: PyTree
) -> engine.WireBytes:
    """Returns the exact bytes that one client sends and receives in one round.

    Args:
      algorithm: as given to `run`.
      model: as given to `run`.
      clients: as given to `run`.
      params: as given to `run`; only shapes matter.
    """
    state = jax.eval_shape(lambda p: engine.init(algorithm, p), params)
    data = clients.visit(0, data_rng(0, 0, 0))
    return engine.wire_bytes(algorithm, access.views(model, algorithm.access), state, data)


def chunk_size_of(plan: Plan, num_clients: int, rounds: int) -> int:
    """Returns the plan's chunk size; by default the first cohort in equal chunks of at most 32.

    Args:
      plan: of the run.
      num_clients: of the population.
      rounds: total number of rounds.

    Raises:
      ValueError: if `rounds`, `checkpoint_every` or `chunk_size` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}")
    if plan.checkpoint_every is not None and plan.checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {plan.checkpoint_every}")
    size = _first_cohort(plan, num_clients)
    if plan.chunk_size is None:
        return max(1, -(-size // max(1, -(-size // 32))))
    if plan.chunk_size < 1:
        raise ValueError(
            f"chunk_size must be at least 1, got {plan.chunk_size}; lower means less memory"
        )
    return plan.chunk_size


def _first_cohort(plan: Plan, num_clients: int) -> int:
    """Returns the number of clients that take part in the first round."""
    if plan.buffer is not None:
        return plan.buffer.size
    return len(draw(plan.sampler, num_clients, seed=plan.seed, round=0))


def _rounds(algorithm, model, clients, *, params, rounds, plan, callbacks):
    wire = wire_bytes_of(algorithm, model, clients, params)
    watch = () if plan.telemetry is None else (plan.telemetry,)
    recorder = recording.recorder(algorithm, plan.recording, plan.directory)
    keeps = {} if recorder is None else {"keep_messages": True}
    programs = plan.executor(algorithm, *watch, **keeps)
    state = engine.init(algorithm, params)
    begun = Begun(
        state,
        client_state_like(algorithm, model, clients, params),
        len(clients),
        {} if plan.directory is None else identify(model, clients, params=params, plan=plan),
    )

    def play(store, held, todo):
        job = _Job(programs, model, store, jax.random.key(plan.seed), recorder)
        return _rounds_of(job, held, clients, todo, plan=plan, wire=wire)

    return keep_rounds(begun, play, rounds=rounds, keep=keep_of(plan), callbacks=callbacks)


def keep_of(plan: Plan) -> Keep:
    """Returns where a plan's files are saved, and when."""
    return Keep(plan.directory, plan.resume, plan.checkpoint_every, plan.may_differ)


def _rounds_of(
    job: _Job,
    held: Held,
    clients: Clients,
    rounds: range,
    *,
    plan: Plan,
    wire: engine.WireBytes,
) -> Iterator[tuple[Held, Record]]:
    """Plays the rounds; data for the next one are prepared while this one is computed."""
    items = _items(clients, rounds, plan, job.programs)
    began = time.perf_counter()
    for _, group in groupby(feed.prefetch(items), lambda item: item[0].round):
        held, chunks, reports, numbers = _play(job, held, group)
        seconds = time.perf_counter() - began
        if plan.speeds is not None:
            numbers = {"virtual_seconds": slowest(plan.speeds, chunks)} | numbers
        yield held, record.summarize(chunks, reports, wire=wire, seconds=seconds) | numbers
        began = time.perf_counter()


def _items(
    clients: Clients, rounds: range, plan: Plan, programs: Programs
) -> Iterator[tuple[Step, int, Chunk]]:
    """Returns an iterator over (step, lanes that the step needs, chunk) of the rounds."""
    assert plan.chunk_size is not None  # set by `chunk_size_of`
    layout: dict[str, Any] = {
        "widths": widths_of(plan.chunk_size, unit=programs.unit),
        "seed": plan.seed,
        "local": programs.local,
    }
    steps = visits.steps(plan, len(clients), rounds)
    if plan.buffer is None:
        return plan.feed(clients, steps, **layout)
    return asynchronous.chunks(clients, steps, buffer=plan.buffer, **layout)


def _play(job: _Job, held: Held, items: Iterable) -> tuple[Held, list, list, Record]:
    """Plays one round; at most two chunks are in flight at a time, however large the cohort."""
    state = held.state._replace(replica=job.programs.broadcast(held.state))
    total: Any = None
    under_way, settled, replicas, sent = [], [], held.replicas, None
    for step, num_lanes, chunk in items:
        stopping.check()
        if total is None:
            total = job.programs.start(job.model, state.replica, chunk.data, num_lanes)
            replicas = {**replicas, step.round: state.replica}
            sent = recording.begin(job.recorder, step.round, state)
        stored = Stored(*job.store.read(chunk.client_ids))
        total, states, reports = job.programs.visit(
            job.model, replicas[int(chunk.round)], total, chunk, stored, job.run_key
        )
        under_way.append((chunk, states, reports))
        if len(under_way) > 1:
            settled.append(_settle(job, *under_way.pop(0), sent))
    summed, (state, seen) = total, job.programs.close(total, state)
    settled += [_settle(job, *item, sent) for item in under_way]
    chunks, reports = zip(*settled, strict=True)
    recording.end(job.recorder, step.round, sent, summed, chunks, reports)
    replicas = {round: tree for round, tree in replicas.items() if round in step.awaited}
    numbers = {"round": step.round, **step.numbers, **record.finite_numbers(jax.device_get(seen))}
    return Held(state, replicas), list(chunks), list(reports), numbers


def _settle(job: _Job, chunk: Chunk, states, reports, sent: list | None):
    """Waits for a chunk, stores the states of clients that were not dropped, adds what was sent."""
    if sent is None:
        reports = reports._replace(message=())
    states, reports = processes.gather((states, reports))
    chunk = chunk._replace(
        data=processes.gather_data(chunk.data, job.programs.local(len(chunk.client_ids)))
    )
    if jax.tree.leaves(states):
        kept = reports.kept
        job.store.write(chunk.client_ids[kept], jax.tree.map(lambda x: x[kept], states))
    if sent is not None and job.recorder is not None:
        sent += recording.uploads(job.recorder.recording, chunk, reports)
    return chunk, reports._replace(message=())
