"""Autonomy drills: what methods lose when a model stops, changes, or shuts clients out.

    python -m experiments.drills --drills=all --methods=fed_avg,fed_bpt:adapter=soft_prompt

Methods are written as for experiments.compare; all other flags are those of experiments.train and
apply to every method. Every drill is an ordinary run in a folder of its own below --output_dir,
started from the same state as the run without the fault. After Ctrl-C the same command with its
--output_dir continues. The results are drills.json, a list of rows, and a table.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from fedjax_post import study
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import lists, parse
from fedjax_post.report.position.ladder import MEASURES
from fedjax_post.study.autonomy import DRILLS
from fedjax_post.study.faults import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _drill(argv), continues=True)


def _define(values: flags.FlagValues) -> None:
    usual = Settings()
    give: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_list("drills", ["all"], f"all, or of {', '.join(DRILLS)}", **give)
    flags.DEFINE_string("methods", "", "name:flag=value:.., with commas between", **give)
    lists.define_many(values, usual="0", of="drills")
    whole: dict[str, tuple[Any, str]] = {
        "at_round": (None, "first round of a fault (half of the rounds)"),
        "rate_limit": (usual.rate_limit, "clients that are answered in a round of `rate_limited`"),
        "refused_client": (usual.refused_client, "the client that `refused` refuses"),
        "excluded_clients": (None, "number of clients that the exclusions exclude (a quarter)"),
        "own_examples": (
            usual.own_examples,
            "rows of the excluded clients that are scored; 0: all",
        ),
    }
    for name, (default, about) in whole.items():
        low = 0 if name in ("refused_client", "own_examples") else 1
        flags.DEFINE_integer(name, default, about, lower_bound=low, **give)
    other = "distance of another version's matrices, in their standard deviations"
    flags.DEFINE_float("change", usual.change, other, lower_bound=0.0, **give)
    version = "base of the same shapes that is the other version (the base with noise)"
    flags.DEFINE_string("next_version", usual.next_version, version, **give)
    terms = "licence under which the weights are taken to be in excluded_weights_licence"
    flags.DEFINE_string("weights_licence", usual.weights_licence, terms, **give)
    for name, about in (("least_memory", "smallest"), ("most_memory", "largest")):
        about += " memory of a client, in sizes of the target's weights"
        flags.DEFINE_float(name, getattr(usual, name), about, lower_bound=0.0, **give)
    about = "the score by which losses are told"
    flags.DEFINE_enum("measure", usual.measure, MEASURES, about, **give)
    flags.DEFINE_string("passport", "", "name of the base's passport (by --model)", **give)
    flags.DEFINE_string("data_licence", "unknown", "licence of the clients' data", **give)


def _drill(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, own=[_define], without=("algorithm", "seed"))
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
        command=shlex.join(argv),
    )
    print(found.table(), f"\nresults  {found.directory}/drills.json", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
