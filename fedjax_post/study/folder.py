"""The output folder of a run: its name, its files written whole or not at all."""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO



_OURS = (
    *("flags", "records.jsonl", "journal.jsonl", "summary.json"),
    *("checkpoints", "clients", "adapter"),
)
_PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")
_UNSTORED = ("output_dir", "resume", "help", "ask_again", *_PROCESSES)


def read_flags(output_dir: str | None) -> list[str]:
    """Returns the lines of a run's `flags` file.

    Raises:
      ValueError: if no folder is given.
      FileNotFoundError: if it holds no run.
    """
    if not output_dir:
        raise ValueError("--resume needs --output_dir, the folder of the run to continue")
    path = Path(output_dir) / "flags"
    if not path.exists():
        raise FileNotFoundError(
            f"--output_dir={output_dir} holds no run to --resume; leave --resume out to start one"
        )
    return path.read_text(encoding="utf-8").splitlines()


def check(spec: Spec) -> None:
    """Refuses an output folder that holds another run.

    Raises:
      FileExistsError: naming what was found there.
    """
    if spec.output_dir is None or spec.resume:
        return
    found = [name for name in _OURS if (Path(spec.output_dir) / name).exists()]
    if found:
        raise FileExistsError(
            f"--output_dir={spec.output_dir} holds another run ({', '.join(found)}); "
            "give a new folder, or --resume to continue it"
        )


def claim(spec: Spec) -> Path:
    """Returns the folder of the run, made if it is new, with the file `flags` in it."""
    if spec.output_dir is None:
        what = re.sub(r"\W+", "-", spec.method.name.rpartition(":")[2]).strip("-")
        what += "" if spec.method.baseline == "none" else f"-{spec.method.baseline}"
        return _fresh(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{what}", spec)
    directory = Path(spec.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    _write_flags(directory, spec)
    return directory


@contextlib.contextmanager
def held(
    directory: Path,
    *,
    locks: Sequence[int | None] = (fcntl.LOCK_EX,),
    agreed: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Iterator[None]:
    """Keeps a run's folder for this process; a process that is killed lets go of it.

    Args:
      directory: of the run.
      locks: what is taken, one after the other; None leaves that to another process.
      agreed: around the taking of each.

    Raises:
      BlockingIOError: if another process has it.
    """
    with open(directory / ".held", "a+", encoding="utf-8") as file:
        for lock in locks:
            with agreed():
                _take(file, lock, directory)
        yield


def _take(file: IO[str], lock: int | None, directory: Path) -> None:
    if lock is None:
        return
    try:
        fcntl.flock(file, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"--output_dir={directory} is being written to by another process; wait for it, "
            "stop it, or give a new folder"
        ) from None


def write_whole(path: Path, make: Callable[[Path], object]) -> None:
    """Lets `make` write a file or folder under another name, then puts it in place.

    Args:
      path: the final name; a file that is there is replaced.
      make: called with a path beside it.
    """
    aside = path.with_name(f".{path.stem}-unfinished{path.suffix}")
    _remove(aside)
    make(aside)
    if path.is_dir():
        _remove(path)
    os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _fresh(parent: Path, name: str, spec: Spec) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        directory = parent / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        _write_flags(directory, spec)
        return directory
    raise FileExistsError(f"{parent / name} is taken; give an --output_dir")


def flag_lines(spec: Spec) -> list[str]:
    """Returns a run's flags as its `flags` file has them, a line each."""
    return [
        options[name].serialize().replace("\n", "\\n")
        for name in sorted(spec)
        if name not in _UNSTORED and options[name].value is not None
    ]


def _write_flags(directory: Path, spec: Spec) -> None:
    write_text(directory / "flags", "".join(f"{line}\n" for line in flag_lines(spec)))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
