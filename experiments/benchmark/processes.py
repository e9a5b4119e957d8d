"""The sides of a comparison, which run in separate processes and take turns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
SIDES = Path(__file__).parent / "sides"
# One thread: on few cores, several threads slow each other down.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class SideError(RuntimeError):
    """A side ended early; the message ends with its last output."""


class Side(NamedTuple):
    """A running program that answers requests."""

    name: str
    process: subprocess.Popen
    errors: IO[str]


@contextmanager
def side(
    name: str, command: Sequence[str], *, environ: Mapping[str, str] | None = None
) -> Iterator[Side]:
    """Starts a side, waits until it is ready, and ends it on exit.

    Args:
      name: for messages.
      command: program and arguments.
      environ: environment variables to set in addition.

    Raises:
      SideError: if it ends before it is ready.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
        )
        try:
            started = Side(name, process, errors)
            _receive(started)
            yield started
        finally:
            assert process.stdin
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def ours(module: str, *arguments: str) -> list[str]:
    """Returns the command of a side that is a module of this project."""
    return [sys.executable, "-m", f"fedjax_post.experiments.benchmark.sides.{module}", *arguments]


def theirs(python: str | Path, script: str, *arguments: str) -> list[str]:
    """Returns the command of a side that runs under a peer's interpreter."""
    return [str(python), str(SIDES / f"{script}.py"), *arguments]


def play(side: Side, **request: Any) -> dict[str, Any]:
    """Sends a request, and returns the answer.

    Raises:
      SideError: if the side ends before it answers.
    """
    assert side.process.stdin
    try:
        side.process.stdin.write(json.dumps(request) + "\n")
        side.process.stdin.flush()
    except BrokenPipeError:
        pass  # `_receive` raises the reason
    return _receive(side)


def take_turns(
    sides: Sequence[Side], turns: int, *, warm_up: int, **request: Any
) -> list[list[dict[str, Any]]]:
    """Returns the answers of each side, turn by turn, those of the warm-up left out.

    The side that begins changes from turn to turn, so that a machine that slows down
    favours neither.

    Args:
      sides: the running sides.
      turns: counted turns of each side.
      warm_up: turns before them, which are not counted.
      **request: what every side is asked in each turn.
    """
    answers: list[list[dict[str, Any]]] = [[] for _ in sides]
    for turn in range(warm_up + turns):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for i in order:
            answers[i].append(play(sides[i], **request))
    return [side[warm_up:] for side in answers]


def _receive(side: Side) -> dict[str, Any]:
    assert side.process.stdout
    line = side.process.stdout.readline()
    if not line:
        code = side.process.wait()
        side.errors.seek(0)
        tail = side.errors.read()[-2000:]
        raise SideError(f"{side.name} ended with code {code} before it answered:\n{tail}")
    return json.loads(line)
