"""`sweep`: many federations in one program, over seeds and scalar hyper-parameters.

Every setting runs with every seed. Runs with the same seed share cohorts and data. All runs share
the model, so that on an accelerator a product with its weights is a single product for all of
them. On a CPU the program computes the runs one after the other. Each run equals the result of
`run` for it alone, up to the order of floating-point sums.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core import access, engine
from fedjax_post.core.algorithm import Algorithm, PyTree
from fedjax_post.core.engine import State, WireBytes
from fedjax_post.data.clients import Clients
from fedjax_post.simulate import feed, programs, record, stopping
from fedjax_post.simulate.identity import identify
from fedjax_post.simulate.keeping import Held, check_unused, keep_rounds
from fedjax_post.simulate.processes import PartedStore
from fedjax_post.simulate.programs import Chunk, Programs, Stored
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.simulate.resume import Begun
from fedjax_post.simulate.run import (
    Plan,
    chunk_size_of,
    client_state_like,
    keep_of,
    wire_bytes_of,
)

# (**setting) -> the algorithm of a setting; its numbers are traced
MakeFn = Callable[..., Algorithm]


class Grid(NamedTuple):
    """The runs of a sweep: every setting with every seed.

    >>> Grid({"learning_rate": (0.1, 0.3)}, seeds=(0, 1, 2)).shape
    (3, 2)
    """

    # hyper-parameter -> its H values; setting h consists of the h-th value of each
    settings: Mapping[str, Sequence[float]]
    seeds: Sequence[int] = (0,)  # in place of `Plan.seed`

    @property
    def shape(self) -> tuple[int, int]:
        """Number of seeds and number of settings."""
        return len(self.seeds), len(next(iter(self.settings.values())))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The settings, each `[H]` float32."""
        return {name: np.asarray(values, np.float32) for name, values in self.settings.items()}


class _Rows(NamedTuple):
    """The client states of all runs, with separate rows for each run."""

    store: PartedStore
    shape: tuple[int, int]
    population: int

    def of(self, client_ids: np.ndarray) -> np.ndarray:
        """Returns rows `[seeds, settings, lanes]` of clients `[seeds, lanes]`; -1 stays -1."""
        seed, setting = np.indices(self.shape)
        first = (seed * self.shape[1] + setting) * self.population
        ids = client_ids[:, None].astype(np.int64)
        return np.where(ids >= 0, first[..., None] + ids, -1)

    def read(self, client_ids: np.ndarray) -> Stored:
        rows = self.of(client_ids)
        states, found = self.store.read(rows.ravel())
        split = lambda x: x.reshape(*rows.shape, *x.shape[1:])
        return Stored(jax.tree.map(split, states), split(found))

    def write(self, client_ids: np.ndarray, kept: np.ndarray, states: PyTree) -> None:
        self.store.write(self.of(client_ids)[kept], jax.tree.map(lambda x: x[kept], states))


class _Job(NamedTuple):
    """A sweep with its files open."""

    programs: Programs
    model: PyTree
    rows: _Rows
    grid: Grid


def sweep(
    make: MakeFn,
    model: PyTree,
    clients: Clients,
    *,
    grid: Grid,
    params: PyTree,
    rounds: int,
    plan: Plan = Plan(),  # noqa: B008 - immutable
    callbacks: Sequence[Callback] = (),
) -> Iterator[tuple[State, Record]]:
    """Returns an iterator over the states and records of all runs after every round.

    Args:
      make: `(**setting) -> algorithm`; a setting's numbers are traced, () float32.
      model: as for `run`; shared by all runs.
      clients: as for `run`.
      grid: the runs.
      params: initial parameters of every run.
      rounds: number of rounds.
      plan: as for `run`, on one device and with cohorts; a sweep is resumed like a run.
      callbacks: as for `run`.

    Returns:
      An iterator over (state, record), one pair for each round. Leaves are
      `[seeds, settings, ...]`, and `record["runs"]` is a list over seeds of lists over settings.
      `run_of(state, s, h)` is the state of one run.

    Raises:
      ValueError: for settings of unequal length or without values, and as `run`.
      FileExistsError: if the directory contains a run and `resume` is off.
      AccessError: if the algorithm needs more access than the model grants.
    """
    _check(grid)
    first = make(**{name: float(values[0]) for name, values in grid.settings.items()})
    access.views(model, first.access)
    plan = plan._replace(chunk_size=chunk_size_of(plan, len(clients), rounds))
    check_unused(keep_of(plan))
    init = lambda setting: engine.init(make(**setting), params)
    state = jax.jit(jax.vmap(init))(grid.arrays)
    state = jax.tree.map(lambda x: jnp.stack([x] * len(grid.seeds)), state)
    begun = Begun(
        state,
        client_state_like(first, model, clients, params),
        int(np.prod(grid.shape)) * len(clients),
        {} if plan.directory is None else _identity(model, clients, params, plan, grid),
    )
    wire = wire_bytes_of(first, model, clients, params)
    swept = _programs(make, grid, plan.telemetry)

    def play(store, held, todo):
        job = _Job(swept, model, _Rows(store, grid.shape, len(clients)), grid)
        return _rounds_of(job, held.state, clients, todo, plan=plan, wire=wire)

    return keep_rounds(begun, play, rounds=rounds, keep=keep_of(plan), callbacks=callbacks)


def run_of(state: PyTree, seed: int, setting: int) -> PyTree:
    """Returns the part of a state that belongs to one run.

    Args:
      state: leaves `[seeds, settings, ...]`.
      seed: position of the seed in the grid.
      setting: position of the setting in the grid.
    """
    return jax.tree.map(lambda x: x[seed, setting], state)


def _identity(model, clients, params, plan: Plan, grid: Grid) -> dict[str, Any]:
    settings = {name: values.tolist() for name, values in grid.arrays.items()}
    found = identify(model, clients, params=params, plan=plan._replace(seed=grid.seeds[0]))
    return found | {"seeds": list(grid.seeds), "settings": settings}


def _check(grid: Grid) -> None:
    lengths = {name: len(values) for name, values in grid.settings.items()}
    if not lengths or len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise ValueError(
            f"settings must give each hyper-parameter the same number of values, got {lengths}"
        )
    if not grid.seeds or len(set(grid.seeds)) < len(grid.seeds):
        raise ValueError(f"seeds must be distinct, and at least one; got {list(grid.seeds)}")


def _programs(make: MakeFn, grid: Grid, telemetry) -> Programs:
    """Returns programs over leaves `[seeds, settings, ...]`; chunks have leaves `[seeds, ...]`."""
    watch = {} if telemetry is None else {"telemetry": telemetry}

    def each(fn, by_seed, by_setting, *, mapped=jax.vmap, **options):
        """Returns `fn(algorithm, ...)` mapped over all runs; axes mark the arguments that vary."""
        made = lambda setting, *args: fn(make(**setting), *args)
        runs = mapped(made, in_axes=(0, *by_setting))
        runs = mapped(runs, in_axes=(None, *by_seed))
        return jax.jit(partial(runs, grid.arrays), **options)

    def start(model, replica, data, num_lanes):
        begun = lambda a, m, r, d: programs.start(a, m, r, d, num_lanes, **watch)
        return each(begun, (None, 0, 0), (None, 0, None))(model, replica, data)

    return Programs(
        broadcast=each(engine.broadcast, (0,), (0,)),
        start=jax.jit(start, static_argnums=3),
        visit=each(
            partial(programs.without_messages(programs.visit_chunk), **watch),
            (None, 0, 0, 0, 0, 0),
            (None, 0, 0, None, 0, None),
            mapped=_loop if jax.default_backend() == "cpu" else jax.vmap,
            donate_argnums=2,
        ),
        close=each(partial(programs.close, **watch), (0, 0), (0, 0)),
    )


def _loop(fn: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """Returns `jax.vmap` as a loop: one run uses the whole CPU, and its data stay in the caches."""

    def mapped(*args):
        def call(own):
            rest = iter(own)
            given = zip(args, in_axes, strict=True)
            return fn(*(arg if axis is None else next(rest) for arg, axis in given))

        return jax.lax.map(
            call, [arg for arg, axis in zip(args, in_axes, strict=True) if axis is not None]
        )

    return mapped


def _rounds_of(
    job: _Job, state: State, clients: Clients, rounds: range, *, plan: Plan, wire: WireBytes
) -> Iterator[tuple[Held, Record]]:
    """Plays the rounds of all runs; the next one's data are prepared while one is computed."""
    width = plan.chunk_size
    assert width is not None  # set by `chunk_size_of`
    seeds = job.grid.seeds
    items = feed.chunks_by_seed(clients, rounds, sampler=plan.sampler, width=width, seeds=seeds)
    began = time.perf_counter()
    for chunks in feed.prefetch(items):
        state, reports, seen = _play(job, state, chunks)
        seconds = time.perf_counter() - began
        runs = _records(job.grid, chunks, reports, seen, wire=wire, seconds=seconds)
        yield Held(state, {}), {"round": int(np.asarray(chunks[0].round)[0]), "runs": runs}
        began = time.perf_counter()


def _play(job: _Job, state: State, chunks: Sequence[Chunk]) -> tuple[State, list, Record]:
    """Plays one round of all runs."""
    programs, model = job.programs, job.model
    keys = jax.vmap(jax.random.key)(np.array(job.grid.seeds, np.uint32))
    state = state._replace(replica=programs.broadcast(state))
    num_lanes = sum(chunk.client_ids.shape[1] for chunk in chunks)
    total = programs.start(model, state.replica, chunks[0].data, num_lanes)
    reports = []
    for chunk in chunks:
        stopping.check()
        stored = job.rows.read(chunk.client_ids)
        total, states, report = programs.visit(model, state.replica, total, chunk, stored, keys)
        states, report = jax.device_get((states, report))
        job.rows.write(chunk.client_ids, report.kept, states)
        reports.append(report)
    state, seen = programs.close(total, state)
    return state, reports, jax.device_get(seen)


def _records(grid: Grid, chunks, reports, seen, *, wire, seconds: float) -> list[list[Record]]:
    def one(s, h):
        own = [jax.tree.map(lambda x: x[s], chunk) for chunk in chunks]
        line = record.summarize(
            own, [run_of(report, s, h) for report in reports], wire=wire, seconds=seconds
        )
        setting = {name: float(values[h]) for name, values in grid.settings.items()}
        found = record.finite_numbers({name: x[s, h] for name, x in seen.items()})
        return {"seed": grid.seeds[s], **setting, **line, **found}

    return [[one(s, h) for h in range(grid.shape[1])] for s in range(grid.shape[0])]
