"""Saves a run's records, checkpoints and client states, however the run ends."""

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
    """Where a run's files are saved, and when."""

    directory: str | Path | None
    resume: bool
    checkpoint_every: int | None  # rounds; None: see `is_due`
    may_differ: Collection[str] = ()  # entries of the identity that a resumed run may change


class Held(NamedTuple):
    """What the server holds between rounds."""

    state: State
    replicas: Mapping[int, PyTree]  # by round: those from which clients at work began


# (store, what the server holds, rounds) -> (what the server holds, record) after each round
PlayFn = Callable[[processes.PartedStore, Held, range], Iterator[tuple[Held, Record]]]


def check_unused(keep: Keep) -> None:
    """Checks that the directory contains no run, unless it is to be resumed.

    Raises:
      FileExistsError: naming the directory and the files found.
    """
    if keep.directory is None or keep.resume:
        return
    directory = Path(keep.directory)
    found = [name for name in ("records.jsonl", "checkpoints") if (directory / name).exists()]
    if processes.agree(bool(found)):
        raise FileExistsError(
            f"{directory} holds another run ({', '.join(found)}); give another `directory`, "
            "or `resume` to continue it"
        )


def is_due(every: int | None, done: int, elapsed: float, cost: float) -> bool:
    """Returns whether a checkpoint follows a round; all processes agree.

    Args:
      every: rounds between checkpoints; None: enough that saving takes at most a fiftieth of the
        time.
      done: number of rounds done.
      elapsed: seconds since the last checkpoint.
      cost: seconds that the last checkpoint took; 0 before the first one.
    """
    if every is not None:
        return done % every == 0
    return processes.agree(elapsed >= 49 * cost)


def keep_rounds(
    begun: Begun, play: PlayFn, *, rounds: int, keep: Keep, callbacks: Sequence[Callback]
) -> Iterator[tuple[State, Record]]:
    """Returns an iterator over (state, record) that plays the remaining rounds and saves them.

    A run that is left unfinished is saved, even if it is still open when the interpreter ends.

    Args:
      begun: the run before its first round.
      play: plays rounds.
      rounds: total number of rounds.
      keep: where files are saved, and when.
      callbacks: called with (state, record) after each round.

    Raises:
      ValueError: if the directory belongs to another run.
    """
    steps = _steps(begun, play, rounds=rounds, keep=keep, callbacks=callbacks)
    _close_at_exit(steps)
    return steps


def _close_at_exit(steps: Generator) -> None:
    """Closes, at exit, a run that a variable or traceback still holds open.

    It runs before the functions that jax has registered, because they were registered earlier.
    """
    open_steps = weakref.ref(steps)

    def close():
        if (still_open := open_steps()) is not None:
            still_open.close()

    atexit.register(close)
    weakref.finalize(steps, atexit.unregister, close).atexit = False


def _steps(
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
                with stopping.defer_signals():
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
            with stopping.defer_signals():
                if keeps and last.rounds_done > saved and processes.are_together():
                    _save(saved_in, store, last)


def _save(saved_in: Path, store: processes.PartedStore, last: checkpoint.Snapshot) -> None:
    store.rewind(last.version)
    checkpoint.save(saved_in, last._replace(version=store.sync()))
    store.keep(checkpoint.versions(saved_in))
