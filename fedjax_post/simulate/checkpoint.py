"""Checkpoints: a federation's state, its number of rounds, and the version of its store.

`checkpoints/<rounds done>/` contains the arrays (`state.safetensors`), their description
(`meta.json`) and the checksums of all these files. It is written under a temporary name that
begins with a dot, and renamed when it is complete. The two latest checkpoints are kept, so that a
run whose latest one is damaged continues from the one before.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_post import integrity
from fedjax_post.core.algorithm import PyTree
from fedjax_post.core.engine import State
from fedjax_post.integrity import DamagedError
from fedjax_post.simulate import arrays, processes
from fedjax_post.simulate.processes import Versions
from fedjax_post.simulate.store import Version

_KEPT = 2
_STATE, _META = "state.safetensors", "meta.json"


class Snapshot(NamedTuple):
    """Everything that is needed to continue a run."""

    state: State
    rounds_done: int
    version: Versions  # of each part of the store
    identity: Mapping[str, Any]  # what must be equal for a run to be the same one
    replicas: Mapping[int, PyTree] = {}  # by round: those from which clients at work began


class Meta(NamedTuple):
    """The description of a checkpoint's arrays."""

    version: Versions
    identity: dict[str, Any]
    shapes: list[str]  # of the state's arrays
    rounds: list[int]  # of the replicas


def save(directory: Path, snapshot: Snapshot) -> None:
    """Saves a checkpoint, completely or not at all, and removes all but the latest two."""
    rounds = sorted(snapshot.replicas)
    held = (snapshot.state, [snapshot.replicas[round] for round in rounds])
    where, aside = (directory / f"{d}{snapshot.rounds_done}" for d in ("", ".unfinished-"))
    if processes.is_first():
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in directory.glob(".unfinished-*"):
            shutil.rmtree(path)
        aside.mkdir(mode=0o700)
    processes.exchange("")
    arrays.write(aside / _STATE, held)
    if processes.is_first():
        meta = {
            "version": [list(part) for part in snapshot.version],
            "identity": dict(snapshot.identity),
            "shapes": shapes(snapshot.state),
            "replicas": rounds,
        }
        (aside / _META).write_text(integrity.seal_file(meta), encoding="utf-8")
        integrity.write_sums(aside)
        for path in aside.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        remove(directory, snapshot.rounds_done)
        os.replace(aside, where)
        _sync(directory)
        for rounds_done in list_rounds(directory)[_KEPT:]:
            remove(directory, rounds_done)
    processes.exchange("")


def list_rounds(directory: Path) -> list[int]:
    """Returns the number of rounds of each checkpoint in a folder, latest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted((int(path.name) for path in found if path.name.isdecimal()), reverse=True)


def remove(directory: Path, rounds_done: int) -> None:
    """Removes a checkpoint if it exists."""
    if processes.is_first() and (directory / str(rounds_done)).exists():
        shutil.rmtree(directory / str(rounds_done))


def versions(directory: Path) -> list[Versions]:
    """Returns the store's version of each checkpoint whose description can be read."""
    return [meta.version for _, meta, _ in _metas(directory) if meta is not None]


def find(directory: Path) -> Iterator[tuple[int, Meta | None, str]]:
    """Returns an iterator over (rounds done, description, problem), the latest checkpoint first.

    The problem is "" for an intact checkpoint. All its files have been read by then.
    """
    for rounds_done, meta, why in _metas(directory):
        if not why and processes.is_first():
            try:
                integrity.check_sums(directory / str(rounds_done))
            except (DamagedError, OSError) as error:
                why = str(error)
        yield rounds_done, meta, next(filter(None, processes.exchange(why)), "")


def load(directory: Path, rounds_done: int, meta: Meta, like: State) -> Snapshot:
    """Returns a checkpoint.

    Args:
      directory: of all checkpoints.
      rounds_done: of the checkpoint.
      meta: its description, from `find`.
      like: state with the structure, shapes and dtypes of the run's.

    Raises:
      ValueError: if the checkpoint's arrays have other shapes or dtypes.
    """
    if meta.shapes != shapes(like):
        raise ValueError(
            f"the checkpoint in {directory} holds arrays {meta.shapes}, this run needs "
            f"{shapes(like)}; resume with the settings of the run that wrote it"
        )
    held = (like, [like.replica for _ in meta.rounds])
    state, replicas = arrays.read(directory / str(rounds_done) / _STATE, held)
    replicas = dict(zip(meta.rounds, replicas, strict=True))
    return Snapshot(state, rounds_done, meta.version, meta.identity, replicas)


def shapes(state: State) -> list[str]:
    """Returns dtype and shape of every array of a state, as texts."""
    return [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(state)]


def _metas(directory: Path) -> Iterator[tuple[int, Meta | None, str]]:
    for rounds_done in list_rounds(directory):
        path = directory / str(rounds_done) / _META
        try:
            content = integrity.read_file(path)
            version = tuple(Version(*map(int, part)) for part in content["version"])
            rounds = list(map(int, content["replicas"]))
            meta = Meta(version, dict(content["identity"]), list(content["shapes"]), rounds)
        except FileNotFoundError:
            yield rounds_done, None, f"{path} is missing: it is damaged, or of an older version"
        except (DamagedError, OSError) as error:
            yield rounds_done, None, str(error)
        except (KeyError, TypeError, ValueError) as error:
            yield rounds_done, None, f"{path} does not describe a checkpoint ({error!r})"
        else:
            yield rounds_done, meta, ""


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
