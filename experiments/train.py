"""Post-trains a language model in a simulated federation.

    python -m experiments.train
    python -m experiments.train --algorithm=scaffold --model=<folder> --dataset=<file or folder>
    python -m experiments.train --resume --output_dir=<folder of a run>

Results are written to a new folder under runs/. The same in a notebook:
`fedjax_post.study.prepare`.
"""

import sys
from collections.abc import Sequence

from fedjax_post import study
from fedjax_post.experiments import process, program
from fedjax_post.experiments.flags import define_launch, distributed, parse
from fedjax_post.report.clients import spread_table
from fedjax_post.report.table import SCORES, summary_table
from fedjax_post.study import peers


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code.

    It is 0; 1 if a file could not be written or no visit counted, 2 for bad input, 130 after
    Ctrl-C, 143 after SIGTERM.
    """
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _train(argv))


def _train(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, own=[define_launch, distributed.define])
    if line.help is not None:
        print(line.help)
        return 0
    distributed.join(line)
    job = study.prepare(
        line.spec,
        directory=line.values.output_dir,
        resume=line.values.resume,
        ask_again=line.values.ask_again,
    )
    if peers.is_first():
        print(job, flush=True)
    if line.values.dry_run:
        return 0
    again = [*distributed.given_flags(line.values), *_by_hand(line.spec)]
    return program.run_job(job, lambda: _carry_out(job, argv), again=again)


def _by_hand(spec: study.Spec) -> list[str]:
    """The flags that have to be given again to continue a run, as no file may give them."""
    host = [] if spec.hosting.url is None else [f"--provider_url={spec.hosting.url}"]
    return host + ([f"--watch={','.join(spec.execution.watch)}"] if spec.execution.watch else [])


def _carry_out(job: study.Job, argv: Sequence[str]) -> int:
    summary = study.carry_out(job, command=process.command("train", argv))
    if not peers.is_first():
        return 0
    print(summary_table(summary, job.directory))
    if by_client := spread_table(summary["clients"], SCORES):
        print(f"\n{by_client}")
    for warning in summary["warnings"]:
        print(f"\nerror: {warning}", file=sys.stderr)
    return 1 if summary["warnings"] else 0


if __name__ == "__main__":
    sys.exit(main())
