"""The folder of a run: its name, its lock, and files written completely or not at all."""

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fedjax_post.integrity import read_lines, seal_file, seal_line

SPEC, CLIENTS, HARNESS = "spec.json", "clients.jsonl", "harness.jsonl"
ATTACKS = "attacks.jsonl"
_OURS = (
    SPEC,
    HARNESS,
    "holdings.json",
    "records.jsonl",
    "journal.jsonl",
    "summary.json",
    CLIENTS,
    "checkpoints",
    "clients",
    "wire",
    ATTACKS,
    "adapter",
)


def unused(label: str) -> Path:
    """Returns a path below `runs` that does not exist yet, named by the time and a label."""
    return next(path for path in _names(label) if not path.exists())


@contextlib.contextmanager
def given_or_fresh(directory: str | Path | None, label: str) -> Iterator[Path]:
    """Returns a context with a folder: the given one, or else a new one below `runs`.

    The new one is made at once, so that two processes never share one by accident, and removed at
    the end if nothing was written into it.

    Args:
      directory: as a user gave it; None for a new one.
      label: of the new one, whose name begins with the time.
    """
    if directory:
        yield Path(directory)
        return
    made = next(path for path in _names(label) if _make(path))
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            made.rmdir()


def _names(label: str) -> Iterator[Path]:
    what = re.sub(r"\W+", "-", label.rpartition(":")[2]).strip("-")
    first = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{what}"
    yield first
    yield from (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))


def _make(directory: Path) -> bool:
    """Makes a folder, and returns False if it exists already."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def adapter_of(path: Path) -> Path:
    """Returns the folder of a run's adapter, or the path itself where it is no run.

    Raises:
      FileNotFoundError: for a run that has not ended, or that has no model to share.
    """
    if not (path / SPEC).exists():
        return path
    if not (path / "adapter").is_dir():
        if (path / "summary.json").exists():
            raise FileNotFoundError(
                f"{path} contains no adapter: each of its clients kept a model of its own, or it "
                "served a stand-in; give a run of a method that shares a model"
            )
        raise FileNotFoundError(f"{path} contains no adapter; let the run end, or resume it")
    return path / "adapter"


def plain(name: str) -> str:
    """Returns a name if it is safe as that of a folder, and what reports would call its folder.

    Raises:
      ValueError: for any other name.
    """
    if not re.fullmatch(r"[\w=]([\w.=-]*[\w=])?", name):
        raise ValueError(
            f"{name!r} cannot name a folder; use letters, digits, _, = and, in between, - and ."
        )
    return name


def check_unused(directory: Path) -> None:
    """Checks that a folder contains no run.

    Raises:
      FileExistsError: naming the files that were found.
    """
    found = [name for name in _OURS if (directory / name).exists()]
    if found:
        raise FileExistsError(
            f"directory={directory} holds another run ({', '.join(found)}); "
            "give a new folder, or `resume` to continue it"
        )


def spec_file(directory: Path | None) -> Path:
    """Returns the path of a run's specification.

    Raises:
      ValueError: if no folder is given.
      FileNotFoundError: if the folder contains no run.
    """
    if directory is None:
        raise ValueError("`resume` needs `directory`, the folder of the run to continue")
    path = directory / SPEC
    if not path.exists():
        raise FileNotFoundError(
            f"directory={directory} holds no run to resume; leave `resume` out to start one"
        )
    return path


@contextlib.contextmanager
def hold(
    directory: Path,
    *,
    locks: Sequence[int | None] = (fcntl.LOCK_EX,),
    agreed: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Iterator[None]:
    """Holds the lock of a run's folder; the system releases it when the process ends.

    Args:
      directory: of the run.
      locks: operations of `fcntl.flock`, carried out one after the other; None skips one, which
        is then another process's turn.
      agreed: returns a context for each operation, in which processes agree on errors.

    Raises:
      BlockingIOError: if another process holds the lock.
    """
    with open(directory / ".held", "a+", encoding="utf-8") as file:
        for lock in locks:
            with agreed():
                _take(file, lock, directory)
        yield


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[bool]:
    """Returns a context with whether this process alone works on a folder, which is created.

    A process that comes second gets False, and does not wait. A claim ends with its process. It
    is another lock than that of `hold`, which a run takes for itself within a claim.

    Args:
      directory: of a run, or of several.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".claimed", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        yield mine


def _take(file: IO[str], lock: int | None, directory: Path) -> None:
    if lock is None:
        return
    try:
        fcntl.flock(file, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"directory={directory} is being written to by another process; wait for it, "
            "stop it, or give a new folder"
        ) from None


def write_whole(path: Path, make: Callable[[Path], object]) -> None:
    """Lets `make` write a file or folder under a temporary name, then renames it.

    Args:
      path: the final path; an existing file or folder is replaced.
      make: called with the temporary path, which is in the same folder.
    """
    aside = path.with_name(f".{path.stem}-unfinished{path.suffix}")
    _remove(aside)
    make(aside)
    if path.is_dir():
        _remove(path)
    os.replace(aside, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, completely or not at all."""
    write_text(path, seal_file(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, completely or not at all."""
    write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes objects as lines of JSON, each with its checksum."""
    write_text(path, "".join(map(seal_line, lines)))


def add_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Adds lines to those of a file, which is new if there is none.

    Raises:
      DamagedError: if a line of the file has changed since it was written.
    """
    before = list(read_lines(path)) if path.exists() else []
    write_lines(path, [*before, *lines])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
