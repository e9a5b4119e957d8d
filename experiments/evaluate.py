"""Scores a run, an adapter's folder or a base, on its own data or on other data.

    python -m experiments.evaluate runs/<a run>
    python -m experiments.evaluate runs/<a run> --dataset=rows.jsonl --eval_clients=4
    python -m experiments.evaluate builtin --dataset=builtin-kinds

Scores are over the held-out rows, all of them and each kind of task, and over the rows of some
clients. All flags are those of experiments.train; those not given are as in the run.
"""

import sys
from collections.abc import Sequence

from fedjax_post import study
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _evaluate(argv))


def _evaluate(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, words=("a run, an adapter's folder or a base",))
    if line.help is not None:
        print(line.help)
        return 0
    print(study.evaluate(line.words[0], line.typed).table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
