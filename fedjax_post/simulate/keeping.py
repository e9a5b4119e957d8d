"""Keeping a run: its records, its checkpoints and its clients' states, whatever ends it."""

import atexit
import time
import weakref
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from fedjax_post.core.algorithm import PyTree
from fedjax_post.core.engine import State
from fedjax_post.simulate import checkpoint, processes, record, resume, stopping
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.simulate.resume import Begun
from fedjax_post.simulate.room import room_in


class Keep(NamedTuple):
    """Where a run's files are kept, and when."""

    directory: str | Path | None
    resume: bool
    checkpoint_every: int | None  # rounds; None: as `is_due` has it
    may_differ: Collection[str] = ()  # names of the identity that a resumed run may change


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
            f"{directory} holds another run ({', '.join(found)}); give another `directory`, "
            "or `resume` to continue it"
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
    """Closes what a variable or a traceback holds open; what jax registered is called later."""
    open_steps = weakref.ref(steps)

    def close():
        if (still_open := open_steps()) is not None:
            still_open.close()

    atexit.register(close)
    weakref.finalize(steps, atexit.unregister, close).atexit = False


def _kept(
    begun: Begun, play: PlayFn, *, rounds: int, keep: Keep, callbacks: Sequence[Callback]
) -> Generator[tuple[State, Record], None, None]:
    with ExitStack() as stack:
        keeps = keep.directory is not None
        directory = Path(keep.directory or stack.enter_context(TemporaryDirectory()))
        stack.enter_context(room_in(directory))
        saved_in = directory / "checkpoints"
        last = resume.begin(directory, begun, keep.may_differ)
        store = processes.PartedStore(
            directory / "clients",
            begun.like,
            begun.population,
            last.version,
            kept=checkpoint.versions(saved_in),
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
                    last = checkpoint.Snapshot(
                        state, done, store.settle(), begun.identity, replicas
                    )
                    elapsed = time.monotonic() - since
                    due = done == rounds or is_due(keep.checkpoint_every, done, elapsed, cost)
                    if keeps and due:
                        _save(saved_in, store, last)
                        saved, cost = done, time.monotonic() - since - elapsed
                        since = time.monotonic()
                yield state, line
        finally:
            with stopping.deferred():
                if keeps and last.rounds_done > saved and processes.are_together():
                    _save(saved_in, store, last)


def _save(saved_in: Path, store: processes.PartedStore, last: checkpoint.Snapshot) -> None:
    store.rewind(last.version)
    checkpoint.save(saved_in, last._replace(version=store.sync()))
    store.keep(checkpoint.versions(saved_in))
