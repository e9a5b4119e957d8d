"""Finds the checkpoint from which a run continues: the latest intact one of the same run.

| found | result |
| --- | --- |
| no checkpoint | the run begins from its first round, with a warning if rounds were recorded |
| seed, data, weights or settings differ | ValueError that names them; nothing is changed |
| files, records or client states of the latest are damaged | the one before it, with a warning |
| all checkpoints are damaged | DamagedError that names each |
"""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.core.algorithm import PyTree
from fedjax_post.core.engine import State
from fedjax_post.integrity import DamagedError
from fedjax_post.simulate import checkpoint, processes, record
from fedjax_post.simulate.checkpoint import Snapshot

_LOG = logging.getLogger(__name__)
_NAMES = {
    "clients": "the number of clients",
    "cohorts": "who takes part in the first rounds",
    "data": "the rows that clients hold",
    "heldout": "the held-out rows",
    "model": "the weights or the architecture of the frozen model",
    "params": "the parameters at the start",
}


class Begun(NamedTuple):
    """A run before its first round."""

    state: State
    like: PyTree  # shapes and dtypes of one client's state
    population: int
    identity: Mapping[str, Any]  # what must be equal for a run to be the same one


def restore(directory: Path, like: State, identity: Mapping[str, Any] | None) -> Snapshot | None:
    """Returns the latest checkpoint with intact files, or None; changes nothing.

    Args:
      directory: of the run.
      like: state with the structure, shapes and dtypes of the run's.
      identity: that the run must have; None: any.

    Raises:
      DamagedError, ValueError: see `run.restore`.
    """

    def differs(found: Snapshot) -> str:
        if identity is not None:
            _check_same(directory, found.identity, identity)
        return ""

    found, damaged = _newest(directory / "checkpoints", like, differs)
    if found is not None and damaged:
        _LOG.warning("going back to round %d: %s", found.rounds_done, _report(damaged))
    return found


def begin(directory: Path, begun: Begun, may_differ: Collection[str]) -> Snapshot:
    """Returns the snapshot from which a run starts; removes later checkpoints, all damaged.

    Args:
      directory: of the run.
      begun: the run before its first round.
      may_differ: entries of the identity that may differ.

    Raises:
      DamagedError: if there are checkpoints and all are damaged.
      ValueError: if the directory belongs to another run.
    """
    where = directory / "checkpoints"

    def wrong(found: Snapshot) -> str:
        _check_same(directory, found.identity, begun.identity, may_differ)
        return _damage(directory, begun, found)

    found, damaged = _newest(where, begun.state, wrong)
    if found is None:
        if (directory / "records.jsonl").exists():
            _LOG.warning("%s contains no checkpoint: beginning again from round 0", directory)
        return Snapshot(begun.state, 0, processes.no_versions(), begun.identity)
    for later in damaged:
        checkpoint.remove(where, later)
    if damaged:
        _LOG.warning(
            "continuing from round %d, later ones removed: %s",
            found.rounds_done,
            _report(damaged),
        )
    return found


def _newest(
    where: Path, like: State, wrong_fn: Callable[[Snapshot], str]
) -> tuple[Snapshot | None, dict[int, str]]:
    """Returns the latest intact checkpoint, and what is wrong with each later one."""
    damaged: dict[int, str] = {}
    for rounds_done, meta, why in checkpoint.find(where):
        if meta is not None and not why:
            found = checkpoint.load(where, rounds_done, meta, like)
            why = wrong_fn(found)
            if not why:
                return found, damaged
        damaged[rounds_done] = why
    if damaged:
        raise DamagedError(
            f"{where} contains no intact checkpoint: {_report(damaged)}; restore one from a "
            "copy, or start a new run in another `directory`"
        )
    return None, {}


def _report(damaged: Mapping[int, str]) -> str:
    return "; ".join(f"round {rounds_done}: {why}" for rounds_done, why in damaged.items())


def _damage(directory: Path, begun: Begun, found: Snapshot) -> str:
    """Returns what is wrong with a checkpoint's client states and records, in any process."""
    why = ""
    try:
        processes.check_versions(directory / "clients", begun.like, begun.population, found.version)
        if processes.is_first():
            record.read_lines(directory / "records.jsonl", found.rounds_done)
    except (DamagedError, OSError) as error:
        why = str(error)
    return next(filter(None, processes.exchange(why)), "")


def _check_same(
    directory: Path,
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    may_differ: Collection[str] = (),
) -> None:
    """Raises ValueError if two identities differ, naming the entries."""
    names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    names = [name for name in names if name not in may_differ]
    if names:
        word = lambda name: _NAMES.get(name, name if " " in name else f"`{name}`")
        value = lambda held, name: held.get(name, "its default")  # settings are kept where set
        found = [
            f"{word(name)} ({value(was, name)} there, {value(now, name)} here)" for name in names
        ]
        raise ValueError(
            f"{directory} belongs to a run that differs from this one in {', '.join(found)}; "
            "resume with the settings, data and weights of that run, or give another `directory`"
        )
