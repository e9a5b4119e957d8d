"""A long run with states, checkpoints and a recording: what grows, what is compiled, what slows.

Two moments of one run are compared: after a tenth of its rounds, when every client has a state and
every program is compiled, and at its end.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fedjax_post import study
from fedjax_post.experiments.benchmark.lines import Aim, Figure
from fedjax_post.experiments.benchmark.settings import Settings
from fedjax_post.simulate import client_state_like
from fedjax_post.simulate.store import row_size_of

_ROUNDS, _CLIENTS, _COHORT = 2_000, 64, 8
_EVERY = 10  # rounds between checkpoints
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Moment(NamedTuple):
    """What a run takes after some of its rounds."""

    memory: int  # resident bytes of the process
    checkpoint: float  # bytes of a checkpoint, the mean of those that are kept
    store: int  # bytes of the clients' states, with their index
    recorded: int  # bytes of the recorded messages
    compiled: int  # programs so far


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields what grew between a tenth of a run and its end, and what was compiled."""
    rounds = 10 * _EVERY if settings.tiny else _ROUNDS
    seconds, compiled, moments = list[float](), list[str](), list[Moment]()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        job = study.prepare(_spec(rounds), directory=directory)
        began = time.process_time()
        for _, record in job.run():
            seconds.append(time.process_time() - began)
            if record["round"] + 1 in (rounds // 10, rounds):
                moments.append(_now(directory, len(compiled)))
            began = time.process_time()
    parts = job.parts
    given = parts.algorithm, parts.model, parts.data.clients, parts.params
    yield from _figures(
        *moments, seconds=seconds, all_states=_CLIENTS * row_size_of(client_state_like(*given))
    )


def _figures(
    early: Moment, late: Moment, *, seconds: list[float], all_states: int
) -> Iterator[Figure]:
    """Yields the figures of two moments of a run.

    Args:
      early: after a tenth of the rounds.
      late: after all.
      seconds: of processor time of each round.
      all_states: bytes of a state for each client.
    """
    rounds, tenth = len(seconds), len(seconds) // 10
    title = f"SCAFFOLD, {rounds:,} rounds"
    for name, limit in (("memory", 1.05), ("checkpoint", 1.05), ("store", 1.1)):
        sizes = getattr(early, name), getattr(late, name)
        known = {"bytes_after_a_tenth": sizes[0], "bytes_at_the_end": sizes[1]}
        yield _at_most(f"{title}: {name}, end over a tenth", sizes[1] / sizes[0], limit, **known)
    # Three versions, the rows of a round, and the index
    limit = 3 + _COHORT / _CLIENTS + 0.1
    yield _at_most(f"{title}: store over all states", late.store / all_states, limit)
    new = float(late.compiled - early.compiled)
    yield Figure(f"{title}: compiled after a tenth", new, "programs", aim=Aim(0, at_least=False))
    second, last = (np.median(part) for part in (seconds[tenth : 2 * tenth], seconds[-tenth:]))
    known = {"cpu_seconds_second_tenth": float(second), "cpu_seconds_last_tenth": float(last)}
    name = f"{title}: processor time of a round, last tenth over second"
    yield _at_most(name, float(last / second), 1.1, **known)
    each = (late.recorded - early.recorded) / (rounds - tenth)
    yield Figure(f"{title}: recorded in a round", each, "bytes")


def _at_most(name: str, value: float, limit: float, **details: float) -> Figure:
    return Figure(name, value, "ratio", aim=Aim(limit, at_least=False), details=details)


def _spec(rounds: int) -> study.Spec:
    return study.Spec(
        model=study.Model("builtin-small"),
        data=study.Data("builtin", num_clients=_CLIENTS),
        adapter=study.Adapter(rank=2),
        method=study.Method("scaffold", client_lr=0.05),
        training=study.Training(rounds=rounds, cohort_size=_COHORT, local_steps=2, batch_size=2),
        scoring=study.Scoring(every=0, examples=16, exact_match="off"),
        execution=study.Execution(
            checkpoint_every=_EVERY, record_wire=f"0:{rounds}", record_wire_clients=(3,)
        ),
    )


def _now(directory: Path, compiled: int) -> Moment:
    kept = list((directory / "checkpoints").iterdir())
    return Moment(
        memory=_resident(),
        checkpoint=_size(directory / "checkpoints") / len(kept),
        store=_size(directory / "clients"),
        recorded=_size(directory / "wire"),
        compiled=compiled,
    )


def _resident() -> int:
    """Returns the resident bytes of this process; where the system does not say, their peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
