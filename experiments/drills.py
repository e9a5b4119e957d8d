"""Autonomy drills: what methods lose when a model stops, changes, or shuts clients out.

    python -m experiments.drills --drills=all --methods=fed_avg,fed_bpt:adapter=soft_prompt

Methods are written as for experiments.compare; all other flags are those of experiments.train and
apply to every method. Every drill is an ordinary run in a folder of its own below --output_dir,
started from the same state as the run without the fault; --max_queries and --max_cost hold for each
of these runs. After Ctrl-C the same command with its --output_dir continues. The results are
drills.json, a list of rows, and a table.
"""

import shlex
import sys
from collections.abc import Sequence

from fedjax_post import study
from fedjax_post.experiments import process, program
from fedjax_post.experiments.flags import lists, parse
from fedjax_post.experiments.flags.drills import define_drills
from fedjax_post.study.autonomy import DRILLS
from fedjax_post.study.faults import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _drill(argv), continues=True)


def _drill(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, own=[define_drills], without=("algorithm", "seed"))
    if line.help is not None:
        print(line.help)
        return 0
    values = line.values
    found = study.drills(
        lists.experiments(line, "methods"),
        chosen=DRILLS if values.drills == ["all"] else values.drills,
        seeds=lists.seeds(values),
        settings=Settings(**{name: values[name].value for name in Settings._fields}),
        directory=values.output_dir,
        ask_again=values.ask_again,
        command=shlex.join(process.command("drills", argv)),
    )
    print(found.table(), f"\nresults  {found.directory}/drills.json", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
