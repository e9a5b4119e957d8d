"""Recordings: the messages of chosen rounds, packed as on the wire, for those who study them.

A round is a folder `wire/round-<number>` with the bytes of each message in a file of its own, a
list of them in `messages.jsonl`, and checksums. A file has exactly the bytes of `core.wire.pack`;
the number behind its weight is in the list. Only the current user can read the folder.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fedjax_post import integrity
from fedjax_post.core import engine
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.checked import call
from fedjax_post.core.wire import pack
from fedjax_post.integrity import DamagedError
from fedjax_post.simulate import processes
from fedjax_post.simulate.programs import Chunk

FOLDER, _LIST = "wire", "messages.jsonl"
DOWN, UP, SUM = "down", "up", "sum"


class Recording(NamedTuple):
    """Which messages of a run are recorded."""

    rounds: range
    clients: tuple[int, ...] = ()  # ids of those whose uploads are recorded; () for all
    # the server can only read the sum of the uploads of a round, which is recorded in place of them
    only_sums: bool = False


class Recorded(NamedTuple):
    """One message."""

    kind: str  # DOWN to all clients, UP from one, or SUM: what the server reads of all of them
    clients: tuple[int, ...]  # that sent it; () for DOWN
    data: bytes
    began: int = 0  # round in which the client received what it trained from
    num_steps: float = 0.0  # local steps of the client, of all clients for SUM
    weight: float = 0.0  # in the mean; 0 for a client that was dropped


class Recorder(NamedTuple):
    """What a run needs to record its messages."""

    recording: Recording
    encode: Callable  # (shared) -> message to all clients, compiled
    finish: Callable  # (total) -> outcome, compiled
    directory: Path  # of the run


def recorder(
    algorithm: Algorithm, recording: Recording | None, directory: str | Path | None
) -> Recorder | None:
    """Returns the recorder of a run; None if nothing is recorded.

    Raises:
      ValueError: if there is no directory to write to.
    """
    if recording is None:
        return None
    if directory is None:
        raise ValueError("a plan with `recording` writes files; give `directory`")
    encode = jax.jit(partial(call, algorithm, "downlink.encode"))
    finish = jax.jit(partial(engine.finish, algorithm))
    return Recorder(recording, encode, finish, Path(directory))


def begin(recorder: Recorder | None, round: int, state: engine.State) -> list[Recorded] | None:
    """Returns the messages of a round so far: the one to all clients; None if it is not recorded.

    Args:
      recorder: of the run, if any.
      round: from 0.
      state: before the round.
    """
    if recorder is None or round not in recorder.recording.rounds:
        return None
    return [Recorded(DOWN, (), pack(recorder.encode(state.shared)), round)]


def uploads(recording: Recording, chunk: Chunk, reports: engine.Report) -> list[Recorded]:
    """Returns the messages of a chunk's clients, those that are recorded.

    Args:
      recording: of the run.
      chunk: the clients.
      reports: leaves `[lanes, ...]`, with messages.
    """
    found = []
    for lane, client in enumerate(np.asarray(chunk.client_ids).tolist()):
        if client < 0 or recording.only_sums:
            continue
        if recording.clients and client not in recording.clients:
            continue
        data = pack(jax.tree.map(lambda x, lane=lane: x[lane], reports.message))
        steps, weight = float(reports.num_steps[lane]), float(reports.weight[lane])
        found.append(Recorded(UP, (client,), data, int(chunk.round), steps, weight))
    return found


def end(
    recorder: Recorder | None,
    round: int,
    sent: list[Recorded] | None,
    total: engine.Total,
    chunks: Sequence[Chunk],
    reports: Sequence[engine.Report],
) -> None:
    """Writes the messages of a round, with the sum if the server can read no more than that.

    Args:
      recorder: of the run, if any.
      round: from 0.
      sent: messages so far; None if the round is not recorded.
      total: the aggregate of the round, not finished.
      chunks: the clients.
      reports: one for each chunk, leaves `[lanes]`.
    """
    if recorder is None or sent is None or not processes.is_first():
        return
    if recorder.recording.only_sums:
        sent = [*sent, _sum_of(recorder.finish(total), chunks, reports)]
    write(recorder.directory, round, sent)


def _sum_of(outcome, chunks, reports) -> Recorded:
    clients, steps = [], 0.0
    for chunk, report in zip(chunks, reports, strict=True):
        clients += np.asarray(chunk.client_ids)[report.kept].tolist()
        steps += float(report.num_steps[report.kept].sum())
    began = int(chunks[0].round)
    return Recorded(SUM, tuple(clients), pack(outcome.value), began, steps, float(outcome.weight))


def write(directory: Path, round: int, messages: Sequence[Recorded]) -> None:
    """Writes the messages of a round, completely or not at all.

    Args:
      directory: of the run.
      round: from 0.
      messages: of the round.
    """
    parent = directory / FOLDER
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, aside = parent / f"round-{round:05d}", parent / f".round-{round:05d}-unfinished"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    lines = []
    for number, message in enumerate(messages):
        name = f"{number:05d}-{message.kind}.bin"
        (aside / name).write_bytes(message.data)
        content = message._asdict() | {"data": name, "bytes": len(message.data)}
        lines.append(integrity.seal_line(content))
    (aside / _LIST).write_text("".join(lines), encoding="utf-8")
    integrity.write_sums(aside)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(aside, path)


def read(directory: Path) -> Iterator[tuple[int, list[Recorded]]]:
    """Yields the recorded rounds of a run in order, each with its messages.

    Raises:
      FileNotFoundError: if nothing was recorded.
      DamagedError: if a file has changed since it was written.
    """
    folders = sorted((directory / FOLDER).glob("round-*"))
    if not folders:
        raise FileNotFoundError(
            f"{directory} has no recorded messages; run it with `record_wire`, such as 0:1"
        )
    for path in folders:
        integrity.check_sums(path)
        messages = []
        for line in integrity.read_lines(path / _LIST):
            size, file = line.pop("bytes"), path / Path(line.pop("data")).name
            line.pop("not_finite", None)
            message = Recorded(**line | {"clients": tuple(line["clients"])}, data=file.read_bytes())
            if len(message.data) != size:
                raise DamagedError(f"{file} has {len(message.data)} bytes, not {size}")
            messages.append(message)
        yield int(path.name.removeprefix("round-")), messages


def projected(recording: Recording, wire: engine.WireBytes, *, cohort: int, rounds: int) -> int:
    """Returns the bytes on disk of the messages, by shape and without their lists.

    Args:
      recording: of the run.
      wire: bytes of one client, whose upload has 4 bytes of weight that are not in its file.
      cohort: number of clients in a round.
      rounds: of the run.
    """
    number = len(range(rounds)[recording.rounds.start : recording.rounds.stop])
    uploads = 1 if recording.only_sums else len(recording.clients) or cohort
    return number * (wire.down + min(uploads, cohort) * (wire.up - 4))
