"""Where a run goes on: the latest checkpoint that is whole, of a run that is the same one.

| found | what happens |
| --- | --- |
| no checkpoint | the run begins |
| seed, data, weights or settings differ | ValueError that names them; nothing is changed |
| files, records or client states of the latest damaged | the one before it, and a line says so |
| and of all before it | DamagedError that names each |
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
    "model": "the weights of the frozen model",
    "params": "the parameters at the start",
}


class Begun(NamedTuple):
    """What a run is before its first round."""

    state: State
    like: PyTree  # shapes and dtypes of one client's state
    population: int
    identity: Mapping[str, Any]  # what must be equal for a run to be the same one


def restore(directory: Path, like: State, identity: Mapping[str, Any] | None) -> Snapshot | None:
    """The latest checkpoint whose files are whole, see `run.restore`; changes nothing."""

    def differs(found: Snapshot) -> str:
        if identity is not None:
            _check_same(directory, found.identity, identity)
        return ""

    found, damaged = _newest(directory / "checkpoints", like, differs)
    if found is not None and damaged:
        _LOG.warning("going back to round %d: %s", found.rounds_done, _told(damaged))
    return found


def begin(directory: Path, begun: Begun, may_differ: Collection[str]) -> Snapshot:
    """What a run starts from; checkpoints behind it, which are damaged, are removed."""
    where = directory / "checkpoints"

    def wrong(found: Snapshot) -> str:
        _check_same(directory, found.identity, begun.identity, may_differ)
        return _damage(directory, begun, found)

    found, damaged = _newest(where, begun.state, wrong)
    if found is None:
        return Snapshot(begun.state, 0, processes.no_versions(), begun.identity)
    for later in damaged:
        checkpoint.remove(where, later)
    if damaged:
        _LOG.warning(
            "going on from round %d, later ones removed: %s", found.rounds_done, _told(damaged)
        )
    return found


def _newest(
    where: Path, like: State, wrong_fn: Callable[[Snapshot], str]
) -> tuple[Snapshot | None, dict[int, str]]:
    """The latest checkpoint that is whole, and what is wrong with later ones."""
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
            f"{where} holds no checkpoint that is whole: {_told(damaged)}; restore one from a "
            "copy, or start a new run in another `directory`"
        )
    return None, {}


def _told(damaged: Mapping[int, str]) -> str:
    return "; ".join(f"round {rounds_done}: {why}" for rounds_done, why in damaged.items())


def _damage(directory: Path, begun: Begun, found: Snapshot) -> str:
    """What is wrong with a checkpoint's client states and records, in any process."""
    why = ""
    try:
        processes.check_versions(directory / "clients", begun.like, begun.population, found.version)
        if processes.is_first():
            record.kept_lines(directory / "records.jsonl", found.rounds_done)
    except (DamagedError, OSError) as error:
        why = str(error)
    return next(filter(None, processes.exchanged(why)), "")


def _check_same(
    directory: Path,
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    may_differ: Collection[str] = (),
) -> None:
    """Refuses to go on with a run that was another one.

    Raises:
      ValueError: naming what differs.
    """
    names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    names = [name for name in names if name not in may_differ]
    if names:
        word = lambda name: _NAMES.get(name, name if name.startswith("-") else f"`{name}`")
        told = [f"{word(name)} ({was.get(name)} there, {now.get(name)} here)" for name in names]
        raise ValueError(
            f"{directory} belongs to a run that differs from this one in {', '.join(told)}; resume "
            "with the settings, data and weights of that run, or give another `directory`"
        )
