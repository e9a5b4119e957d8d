"""Federated post-training of a language model, from the command line.

    python -m experiments.train
    python -m experiments.train --algorithm=scaffold --model=<folder> --dataset=<file or folder>

Results lie in a new folder under runs/. The same in a notebook is `fedjax_post.run`.
"""

import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

# transformers would announce that it found no PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
from absl import flags as absl_flags

import fedjax_post
from experiments import (
    disclosure,
    distributed,
    dp,
    flags,
    hosting,
    peers,
    process,
    scoring,
    summary,
)
from experiments.build import Job, build
from experiments.wording import in_flags
from fedjax_post.core.access import AccessError
from fedjax_post.core.engine import State, init
from fedjax_post.evaluate.scores import Scores
from fedjax_post.openness.ledger import DisclosureError
from fedjax_post.report.curve import draw_curve
from fedjax_post.report.table import summary_table

_FULL = "the device's memory does not hold a chunk of clients; give --remat or a lower --chunk_size"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 1 if a file failed, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    began = time.perf_counter()
    try:
        options = flags.parse(argv)
        if options.help:
            print(__doc__, options.get_help(), sep="\n")
            return 0
        distributed.join(options)
        process.prepare()
        job = prepare(options)
    except absl_flags.UnrecognizedFlagError as error:
        return _refuse(f"{error}; --help lists the flags")
    except TimeoutError as error:
        return peers.leave(_refuse(str(error)))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return peers.leave(130)
    except (
        absl_flags.Error,
        ValueError,
        OSError,
        AccessError,
        ImportError,
        DisclosureError,
    ) as error:
        return _refuse(str(error))
    try:
        with peers.held(Path(job.plan.directory)):
            try:
                carry_out(job, options, argv=argv, began=began)
            except (KeyboardInterrupt, Exception) as error:
                return _stopped(error, Path(job.plan.directory), options)
    except (BlockingIOError, peers.PeerError) as error:
        return _refuse(str(error))
    return 0


def prepare(options: absl_flags.FlagValues) -> Job:
    """Returns the run with its folder, what it will take being printed."""
    job = build(options)
    with peers.together():
        if peers.is_first():
            print(summary.projection(job, options), flush=True)
    directory = peers.claim(options)
    job = job._replace(plan=job.plan._replace(directory=directory))
    if hosting.is_hosted(options):
        model = hosting.model_of(options, job.tokenizer, directory=directory)
        job = job._replace(model=model)
    return job


def carry_out(
    job: Job, options: absl_flags.FlagValues, *, argv: Sequence[str], began: float
) -> None:
    """Scores, trains, scores again, and writes what came out."""
    base = scoring.score_state(job, init(job.algorithm, job.params), job.heldout, rounds=0)
    state = train(job, options)
    if options.baseline == "local":
        scores = {"base": base, "final": scoring.score_personal(job, options, state)}
    else:
        scores = {
            "base": base,
            "final": scoring.score_state(job, state, job.heldout, rounds=options.num_rounds),
        }
        if options.score_personal:
            scores["personal"] = scoring.score_own_tasks(job, options, state)
        summary.export(job, options, state, scores=scores)
    with peers.together():
        if peers.is_first():
            seconds = time.perf_counter() - began
            report(job, options, scores=scores, argv=argv, seconds=seconds)


def report(
    job: Job,
    options: absl_flags.FlagValues,
    *,
    scores: dict[str, Scores],
    argv: Sequence[str],
    seconds: float,
) -> None:
    """Writes what left the federation, the summary and the learning curve, and prints the table."""
    directory = Path(job.plan.directory)
    entries = disclosure.entries_of(options, job.algorithm, job.data, job.plan, job.form)
    disclosure.write(directory, entries)
    content = summary.summarize(
        job, options, scores=scores, entries=entries, argv=argv, seconds=seconds
    )
    summary.write_summary(directory, content)
    draw_curve(directory)
    print(summary_table(content, directory))


def train(job: Job, options: absl_flags.FlagValues) -> State:
    """Returns the state after the last round.

    Raises:
      peers.Stopped: if the run was interrupted in one of its processes.
    """
    callbacks = []
    if peers.is_first():
        callbacks.append(fedjax_post.progress(options.num_rounds, start=job.rounds_done))
    if options.eval_every and options.baseline != "local":
        callbacks.insert(0, scoring.curve(job, options))
    if job.promised is not None:
        callbacks.insert(0, dp.curve(job.promised, options))
    rounds = fedjax_post.run(
        job.algorithm,
        job.model,
        job.data.clients,
        params=job.params,
        rounds=options.num_rounds,
        plan=job.plan,
        callbacks=callbacks,
    )
    latest = job.start
    with closing(rounds):
        for state, record in rounds:
            latest = state
            if peers.should_stop(record["round"]) and record["round"] + 1 < options.num_rounds:
                raise peers.Stopped
    return latest


def _stopped(error: BaseException, directory: Path, options: absl_flags.FlagValues) -> int:
    """Says what ended a run and how it goes on; returns the exit code."""
    interrupted = isinstance(error, KeyboardInterrupt)
    lost, full = peers.cut_off(error), _is_full(error)
    if not (interrupted or lost or full or isinstance(error, (OSError, peers.PeerError))):
        if not peers.are_several():
            raise error
        traceback.print_exception(error)
    why = "interrupted" if interrupted else f"error: {in_flags(str(error), flags.define())}"
    why = f"error: another process has ended ({lost})" if lost else why
    why = f"error: {_FULL} ({str(error).splitlines()[0]})" if full else why
    given = " ".join(
        ["--resume", *distributed.given(options), *map(shlex.quote, hosting.given(options))]
    )
    again = f"python -m experiments.train --output_dir={shlex.quote(str(directory))} {given}"
    print(f"\n{why}; to continue: {again}", file=sys.stderr)
    code = 130 if interrupted else 1
    return code if peers.is_told(error) else peers.leave(code)


def _is_full(error: BaseException) -> bool:
    """Returns whether a device had no memory left."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _refuse(message: str) -> int:
    print(f"error: {in_flags(message, flags.define())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
