"""Prints what a base model opens and what can be run on it, or runs a ladder of access.

    python -m experiments.openness --passport=all
    python -m experiments.openness --passport=olmo-2
    python -m experiments.openness --what_can_i_run=llama-3.2 [--downgrade=LOGITS]

Your own passport is given by its path, ending in .toml.

    python -m experiments.openness --task=kinds --seeds=0,1,2
    python -m experiments.openness --over=runs/kinds_mixed,runs/sst2

The first runs one task at every level of access, with the same clients and seeds, and writes a
position report; --dry_run checks every run and prints what it will cost. All other flags are those
of experiments.train and apply to every run. After Ctrl-C the same command with its --output_dir
continues. The second writes what several ladders come to, in --output_dir or runs/over_tasks.
"""

import shlex
import sys
from collections.abc import Sequence

from fedjax_post import study
from fedjax_post.experiments import process, program
from fedjax_post.experiments.flags import lists, parse
from fedjax_post.experiments.flags.ladder import read_ladder
from fedjax_post.experiments.flags.openness import define_openness
from fedjax_post.report import position
from fedjax_post.study.catalogue import answer
from fedjax_post.study.ladder import plan

_ASKED = ("passport", "what_can_i_run", "downgrade")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _openness(argv), continues=True)


def _openness(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, own=[define_openness], without=("seed",))
    values = line.values
    if line.help is not None:
        print(line.help)
    elif values.over:
        if others := sorted(line.by_hand - {"over", "output_dir"}):
            raise ValueError(f"--over judges ladders as they are; leave out --{others[0]}")
        print(position.over_tasks(values.over, values.output_dir or "runs/over_tasks"))
    elif values.task is None:
        print(answer(values.passport, values.what_can_i_run, downgrade=values.downgrade))
    else:
        _climb(line, argv)
    return 0


def _climb(line, argv: Sequence[str]) -> None:
    values = line.values
    for name in _ASKED:
        if values[name].value is not None:
            raise ValueError(f"--{name}={values[name].value} and --task exclude each other")
    task = read_ladder(values.task, line.typed, trust_code=values.trust_code)
    task = task._replace(extras=task.extras._replace(only=values.only))
    given = task._asdict() | {"seeds": lists.seeds(values)}
    if values.dry_run:
        print(plan(**given))
        return
    found = study.ladder(
        **given,
        directory=values.output_dir,
        ask_again=values.ask_again,
        command=shlex.join(process.command("openness", argv)),
    )
    print(found.table())


if __name__ == "__main__":
    sys.exit(main())
