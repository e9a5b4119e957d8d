"""Keeping a run: its records, its checkpoints and its clients' states, whatever ends it."""

import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from fedjax_post.core.algorithm import PyTree
from fedjax_post.core.engine import State
from fedjax_post.simulate import checkpoint, processes, record, stopping
from fedjax_post.simulate.record import Callback, Record


class Keep(NamedTuple):
    """Where a run's files are kept, and when."""

    directory: str | Path | None
    resume: bool
    checkpoint_every: int | None  # rounds; None: as `is_due` has it


class Begun(NamedTuple):
    """What a run is before its first round."""

    state: State
    like: PyTree  # shapes and dtypes of one client's state
    population: int
    identity: dict[str, Any]  # what must be equal for a run to be the same one


class Held(NamedTuple):
    """What the server holds between rounds."""

    state: State
    replicas: Mapping[int, PyTree]  # by round: those that clients at work began from


# (store, what is held, rounds to play) -> what is held, and the record, after each of them
PlayFn = Callable[[processes.PartedStore, Held, range], Iterator[tuple[Held, Record]]]


def check_unused(keep: Keep) -> None:
    """Refuses a directory that holds a run which is not to be resumed.

    Raises:
      FileExistsError: naming it.
    """
    if keep.directory is None or keep.resume:
        return
    directory = Path(keep.directory)
    found = [name for name in ("records.jsonl", "checkpoints") if (directory / name).exists()]
    if processes.agreed(bool(found)):
        raise FileExistsError(
            f"{directory} holds another run ({', '.join(found)}); give another --output_dir, "
            "or --resume to continue it"
        )


def is_due(every: int | None, done: int, elapsed: float, cost: float) -> bool:
    """Whether a round is followed by a checkpoint; the same on all processes.

    Args:
      every: rounds between checkpoints; None: so many that saving takes at most a fiftieth
        of the time, for what it costs depends on the state and rounds may be short.
      done: rounds.
      elapsed: seconds since the last checkpoint.
      cost: seconds that it took; 0 before the first one.
    """
    if every is not None:
        return done % every == 0
    return processes.agreed(elapsed >= 49 * cost)


def kept(
    begun: Begun, play: PlayFn, *, rounds: int, keep: Keep, callbacks: Sequence[Callback]
) -> Iterator[tuple[State, Record]]:
    """Plays the rounds that are left, and keeps them: states and records, one a round.

    A run that is left unfinished is saved, even where the interpreter ends with it still open.

    Raises:
      ValueError: if the directory belongs to another run.
    """
    steps = _kept(begun, play, rounds=rounds, keep=keep, callbacks=callbacks)
    _close_at_exit(steps)
    return steps


def _close_at_exit(steps: Generator) -> None:
    """Closes what a variable or a traceback holds open, while threads can still be started.

    `atexit` comes too late: a checkpoint is written on threads of the standard library, which
    end themselves by this same list, before what is registered there.
    """
    open_steps = weakref.ref(steps)

    def close():
        if (still_open := open_steps()) is not None:
            still_open.close()

    threading._register_atexit(close)  # type: ignore[attr-defined]


def _kept(
    begun: Begun, play: PlayFn, *, rounds: int, keep: Keep, callbacks: Sequence[Callback]
) -> Generator[tuple[State, Record], None, None]:
    with ExitStack() as stack:
        directory = Path(keep.directory or stack.enter_context(TemporaryDirectory()))
        keeps, manager = keep.directory is not None, None
        if keeps:
            manager = stack.enter_context(checkpoint.open_manager(directory / "checkpoints"))
        last = _begin(manager, begun)
        store = processes.PartedStore(
            directory / "clients", begun.like, begun.population, last.version
        )
        stack.callback(store.close)
        if keeps and processes.is_first():
            record.keep_lines(directory / "records.jsonl", last.rounds_done)
            lines = stack.enter_context(open(directory / "records.jsonl", "a", encoding="utf-8"))
        saved, cost, since = last.rounds_done, 0.0, time.monotonic()
        try:
            start = Held(last.state, last.replicas)
            played = play(store, start, range(saved, rounds))
            while last.rounds_done < rounds:
                with stopping.deferred():
                    (state, replicas), line = next(played)
                    for callback in callbacks:
                        line |= callback(state, line) or {}
                    if keeps and processes.is_first():
                        record.append(lines, line)
                    done = line["round"] + 1
                    last = checkpoint.Snapshot(state, done, store.version, begun.identity, replicas)
                    elapsed = time.monotonic() - since
                    due = done == rounds or is_due(keep.checkpoint_every, done, elapsed, cost)
                    if keeps and due:
                        _save(manager, store, last)
                        saved, cost = done, time.monotonic() - since - elapsed
                        since = time.monotonic()
                yield state, line
        finally:
            with stopping.deferred():
                if keeps and last.rounds_done > saved and processes.are_together():
                    _save(manager, store, last)


def _begin(manager, begun: Begun) -> checkpoint.Snapshot:
    """What the run starts from: the latest checkpoint, or nothing done."""
    identity = begun.identity
    last = None if manager is None else checkpoint.latest(manager, begun.state)
    if last is None:
        return checkpoint.Snapshot(begun.state, 0, processes.no_versions(), identity)
    if last.identity != identity:
        both = sorted({*identity, *last.identity})
        names = [name for name in both if identity.get(name) != last.identity.get(name)]
        was, now = ([str(side.get(name)) for name in names] for side in (last.identity, identity))
        raise ValueError(
            f"{manager.directory} belongs to a run with {names} = {was}, this one has {now}; "
            "resume with the settings of that run or give another directory"
        )
    return last


def _save(manager, store: processes.PartedStore, last: checkpoint.Snapshot) -> None:
    store.rewind(last.version)
    version = store.sync()
    store.forget_before(checkpoint.save(manager, last._replace(version=version)))
