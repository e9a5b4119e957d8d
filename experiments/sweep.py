"""Runs one experiment over a grid of settings and seeds, and prints a table.

    python -m experiments.sweep --grid=client_lr=0.1,0.3 --grid=lora_rank=4,8 --seeds=0,1

All combinations are run; all other flags of experiments.train apply to every run. After Ctrl-C or
a kill, the same command with its --output_dir continues and does not repeat finished runs.
"""

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from fedjax_post import study
from fedjax_post.experiments import process, program
from fedjax_post.experiments.flags import lists, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _sweep(argv), continues=True)


def _define(values: flags.FlagValues) -> None:
    about = "flag=value,value,...; repeat it for each flag that varies"
    flags.DEFINE_multi_string("grid", [], about, flag_values=values)
    lists.define_many(values, usual="0", of="sweep")


def _sweep(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, own=[_define], without=("seed",))
    if line.help is not None:
        print(line.help)
        return 0
    found = study.sweep(
        line.spec,
        lists.grid(line.values.grid),
        seeds=lists.seeds(line.values),
        directory=line.values.output_dir,
        ask_again=line.values.ask_again,
        command=shlex.join(process.command("sweep", argv)),
    )
    print(f"{found.table()}\n\nresults    {found.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
