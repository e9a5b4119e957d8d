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
from contextlib import ExitStack, closing
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
    endings,
    flags,
    hosting,
    peers,
    process,
    scoring,
    summary,
)
from experiments.build import Job, build
from fedjax_post.core.engine import State, init
from fedjax_post.evaluate.scores import Scores
from fedjax_post.report.curve import draw_curve
from fedjax_post.report.table import summary_table
from fedjax_post.simulate import stopping
from fedjax_post.simulate.room import room_in

_FULL = "the device's memory does not hold a chunk of clients; give --remat or a lower --chunk_size"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code.

    0; 1 if a file failed or no visit counted, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    with stopping.catching(), ExitStack() as stack:
        return _main(list(sys.argv if argv is None else argv), stack)


def _main(argv: list[str], stack: ExitStack) -> int:
    """`main`, with the run's folder held until the stack ends."""
    began = time.perf_counter()
    try:
        options = flags.parse(argv)
        if options.help:
            print(__doc__, options.get_help(), sep="\n")
            return 0
        distributed.join(options)
        process.prepare()
        job = prepare(options, stack)
    except TimeoutError as error:
        return peers.leave(endings.refuse(error, flags.define()))
    except KeyboardInterrupt as error:
        print("\ninterrupted", file=sys.stderr)
        return peers.leave(endings.interrupted_code(error))
    except endings.REFUSED as error:
        return endings.refuse(error, flags.define())
    try:
        with room_in(Path(job.plan.directory)):
            return carry_out(job, options, argv=argv, began=began)
    except (KeyboardInterrupt, Exception) as error:
        return _stopped(error, Path(job.plan.directory), options)


def prepare(options: absl_flags.FlagValues, stack: ExitStack) -> Job:
    """Returns the run with its folder, held by the stack, what it will take being printed."""
    job = build(options)
    with peers.together():
        if peers.is_first():
            print(summary.projection(job, options), flush=True)
    with room_in(Path(options.output_dir or "runs")):
        directory = peers.claim(options, stack)
    job = job._replace(plan=job.plan._replace(directory=directory))
    if hosting.is_hosted(options):
        model = hosting.model_of(options, job.tokenizer, directory=directory)
        job = job._replace(model=model)
    return job


def carry_out(
    job: Job, options: absl_flags.FlagValues, *, argv: Sequence[str], began: float
) -> int:
    """Scores, trains, scores again, and writes what came out; 1 if no visit counted, else 0."""
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
        summary.export(job, options, state)
    with peers.together():
        if peers.is_first():
            seconds = time.perf_counter() - began
            warnings = report(job, options, scores=scores, argv=argv, seconds=seconds)
            return 1 if warnings else 0
    return 0


def report(
    job: Job,
    options: absl_flags.FlagValues,
    *,
    scores: dict[str, Scores],
    argv: Sequence[str],
    seconds: float,
) -> list[str]:
    """Writes what left the federation, the summary and the learning curve, and prints the table.

    Returns:
      The summary's warnings, which were printed too.
    """
    directory = Path(job.plan.directory)
    entries = disclosure.entries_of(options, job.algorithm, job.data, job.plan, job.form)
    disclosure.write(directory, entries)
    content = summary.summarize(
        job, options, scores=scores, entries=entries, argv=argv, seconds=seconds
    )
    summary.write_summary(directory, content)
    draw_curve(directory)
    print(summary_table(content, directory))
    for warning in content["warnings"]:
        print(f"\nerror: {warning}", file=sys.stderr)
    return content["warnings"]


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
    lost, full = peers.cut_off(error), _is_full(error)
    told = isinstance(error, (OSError, peers.PeerError)) and not endings.passed_own_code(error)
    if not (isinstance(error, KeyboardInterrupt) or lost or full or told):
        if not peers.are_several():
            raise error
        traceback.print_exception(error)
    code, why = 1, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        code, why = endings.interrupted_code(error), "interrupted"
    why = f"error: another process has ended ({lost})" if lost else why
    why = f"error: {_FULL} ({str(error).splitlines()[0]})" if full else why
    given = " ".join(["--resume", *distributed.given(options)])
    again = f"python -m experiments.train --output_dir={shlex.quote(str(directory))} {given}"
    print(f"\n{why}; to continue: {again}", file=sys.stderr)
    return code if peers.is_told(error) else peers.leave(code)


def _is_full(error: BaseException) -> bool:
    """Returns whether a device had no memory left."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


if __name__ == "__main__":
    sys.exit(main())
