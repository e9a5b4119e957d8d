"""A whole run: it is scored, trained and scored again, and its results are written."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedjax_post
from fedjax_post.core.engine import State, init
from fedjax_post.data.holdings import holdings
from fedjax_post.report import holdings as report
from fedjax_post.report.curve import draw_curve
from fedjax_post.simulate.record import Callback
from fedjax_post.simulate.room import room_in
from fedjax_post.study import (
    canary_clients,
    export,
    folder,
    ledgers,
    metered,
    peers,
    scoring,
    summary,
    uses,
)
from fedjax_post.study.build import Parts
from fedjax_post.study.job import Job, rounds_of


def carry_out(
    job: Job, *, command: Sequence[str] = (), callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Runs a job to its end, from its last checkpoint if it is resumed, and returns its summary.

    Scores the base, trains, scores the result, and writes into the folder of the run: first who
    holds what, at the end the adapter, the disclosure ledger, the summary and the learning curve.
    Personal models and a stand-in are scored alone.

    Args:
      job: as returned by `prepare`.
      command: the command line that started the run, for the summary.
      callbacks: as for `Job.run`.

    Raises:
      BlockingIOError: if another process writes to the folder.
      peers.Stopped: if all processes were asked to stop; the run is saved and can be resumed.
    """
    began = time.perf_counter()
    with room_in(job.directory), job.opened() as job:
        parts = job.parts
        with peers.together():
            if peers.is_first():
                _write_holdings(job.directory, parts)
                uses.entries_of(job.directory, parts.spec)  # a damaged record is found before work
        base = scoring.before(parts, init(parts.algorithm, parts.params))
        evaluated = metered.evaluated(parts, rounds=0)
        state = _train(job, callbacks)
        final = scoring.final(parts, state)
        scores = base.scores | final.scores
        if parts.has_shared_model and not export.serves_stand_in(parts, state):
            export.write(parts, state, job.directory / "adapter", scores=scores)
        evaluated += metered.evaluated(parts, rounds=parts.spec.training.rounds)
        given = parts.spec, parts.algorithm, parts.data, parts.plan, parts.form
        disclosed = ledgers.ledger_of(*given, evaluated=evaluated)
        seconds = time.perf_counter() - began
        content = summary.summarize(
            parts, base, final, disclosed=disclosed, command=command, seconds=seconds
        ) | {"audit": canary_clients.audit_summary(parts, state)}
        with peers.together():
            if peers.is_first():
                used = uses.entries_of(job.directory, parts.spec)
                ledgers.write(job.directory, disclosed.entries, used)
                folder.write_lines(job.directory / folder.CLIENTS, scoring.records_of(final))
                folder.write_json(job.directory / "summary.json", content)
                draw_curve(job.directory)
    return content


def _train(job: Job, callbacks: Sequence[Callback]) -> State:
    """Runs the remaining rounds of an opened job and returns the state after the last one."""
    rounds = job.parts.spec.training.rounds
    if peers.is_first():
        callbacks = [*callbacks, fedjax_post.progress(rounds, start=job.rounds_done)]
    latest = job.start
    for state, record in rounds_of(job.parts, callbacks, rounds_done=job.rounds_done):
        latest = state
        if peers.should_stop(record["round"]) and record["round"] + 1 < rounds:
            raise peers.Stopped
    return latest


def _write_holdings(directory: Path, parts: Parts) -> None:
    content = holdings(parts.data).content(seed=parts.spec.seed)
    folder.write_json(directory / report.NAME, content)
    report.draw_holdings(content, directory / "partition.png")
