"""Compares several algorithms on the same clients, seeds and budget, by score and by bytes.

    python -m experiments.compare --algorithms=fed_avg,scaffold,ffa_lora:client_lr=0.3 --seeds=0,1,2

Flags of one algorithm follow it after colons; all other flags of experiments.train apply to every
run. Each is an ordinary run in a folder <output_dir>/<algorithm>/seed-<seed>. After Ctrl-C or a
kill, the same command with its --output_dir continues and does not repeat finished runs; seeds
and algorithms may be added to a comparison.
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
    return program.run(lambda: _compare(argv), continues=True)


def _define(values: flags.FlagValues) -> None:
    about = "name:flag=value:.., with commas between algorithms"
    flags.DEFINE_string("algorithms", "", about, flag_values=values)
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
        ask_again=line.values.ask_again,
        command=shlex.join(process.command("compare", argv)),
    )
    print(f"{found.table()}\n\nresults    {found.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
