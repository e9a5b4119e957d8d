"""The output folder of a run: its name, its files written whole or not at all."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from absl import flags

from experiments import provenance
from fedjax_post.integrity import DamagedError, sealed_file

_OURS = (
    *("flags", "records.jsonl", "journal.jsonl", "summary.json"),
    *("checkpoints", "clients", "adapter"),
)
_PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")
_SUM = "# sha256 of the lines above: "  # a comment to whoever reads flags
_UNSTORED = ("output_dir", "resume", "help", "ask_again", "trust_code", *_PROCESSES)


def read_flags(output_dir: str | Path | None) -> list[str]:
    """Returns the lines of a run's `flags` file, which remember it.

    Raises:
      ValueError: if no folder is given, or the file is not as it was written.
      FileNotFoundError: if it holds no run.
    """
    if not output_dir:
        raise ValueError("--resume needs --output_dir, the folder of the run to continue")
    path = Path(output_dir) / "flags"
    if not path.exists():
        raise FileNotFoundError(
            f"--output_dir={output_dir} holds no run to --resume; leave --resume out to start one"
        )
    return provenance.from_file(_opened(path.read_bytes(), path), path)


def check(options: flags.FlagValues) -> None:
    """Refuses an output folder that holds another run.

    Raises:
      FileExistsError: naming what was found there.
    """
    if options.output_dir is None or options.resume:
        return
    found = [name for name in _OURS if (Path(options.output_dir) / name).exists()]
    if found:
        raise FileExistsError(
            f"--output_dir={options.output_dir} holds another run ({', '.join(found)}); "
            "give a new folder, or --resume to continue it"
        )


def place(options: flags.FlagValues) -> Path:
    """Returns the folder of the run, made if it is new; nothing is written into it."""
    if options.output_dir is None:
        what = re.sub(r"\W+", "-", options.algorithm.rpartition(":")[2]).strip("-")
        what += "" if options.baseline == "none" else f"-{options.baseline}"
        return _fresh(Path("runs"), f"{time.strftime('%Y%m%d-%H%M%S')}-{what}")
    directory = Path(options.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def begin(directory: Path, options: flags.FlagValues) -> None:
    """Writes the file `flags`, in a folder that this process holds.

    Raises:
      FileExistsError: if another run came first.
    """
    check(options)
    lines = "".join(f"{line}\n" for line in flag_lines(options))
    write_text(directory / "flags", f"{lines}{_SUM}{_sum_of(lines)}\n")


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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object with its checksum, whole or not at all."""
    write_text(path, sealed_file(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _fresh(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        directory = parent / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise FileExistsError(f"{parent / name} is taken; give an --output_dir")


def flag_lines(options: flags.FlagValues) -> list[str]:
    """Returns a run's flags as its `flags` file has them, a line each."""
    return [
        options[name].serialize().replace("\n", "\\n")
        for name in sorted(options)
        if name not in _UNSTORED and options[name].value is not None
    ]


def _opened(raw: bytes, path: Path) -> list[str]:
    """The flags of a `flags` file, whose last line is the checksum of those before it."""
    lines, found, written = raw.rpartition(_SUM.encode())
    if not found or written != f"{_sum_of(lines)}\n".encode():
        raise DamagedError(
            f"{path} is not as the run wrote it; restore it, or start a new run with "
            f"--flagfile={path} and another --output_dir"
        )
    return lines.decode(errors="replace").splitlines()


def _sum_of(lines: str | bytes) -> str:
    return hashlib.sha256(lines.encode() if isinstance(lines, str) else lines).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
