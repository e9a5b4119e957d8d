"""Several algorithms on the same clients, seeds and budget, and what each gives for its bytes.

    python -m experiments.compare --algorithms=fed_avg,scaffold,ffa_lora:client_lr=0.3 --seeds=0,1,2

An algorithm is followed by flags of its own after colons; all other flags of experiments.train
go to every run. Each run is an ordinary one, in a folder <output_dir>/<algorithm>/seed-<seed>.
The same command goes on after Ctrl-C or a kill, and does not repeat runs that are finished; more
seeds or algorithms may be added to a comparison.
"""

import shlex
import sys
from collections.abc import Sequence

from absl import flags
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import lists, parse

from fedjax_post import study


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _compare(argv))


def _define(values: flags.FlagValues) -> None:
    what = "name:flag=value:.., with commas between algorithms"
    flags.DEFINE_string("algorithms", "", what, flag_values=values)
    lists.define_many(values, usual="0,1,2", of="comparison")


def _compare(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, own=[_define], without=("algorithm", "seed"))
    if line.help is not None:
        print(line.help)
        return 0
    found = study.compare(
        lists.experiments(line, "algorithms"),
        seeds=lists.seeds(line.values),
        directory=line.values.output_dir,
        command=shlex.join(["compare", *argv[1:]]),
    )
    print(f"{found.table()}\n\nresults    {found.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
