"""Autonomy drills: what methods lose when whoever hosts the model stops, changes or refuses.

    python -m experiments.drills --drills=all --methods=fed_avg,fed_bpt:adapter=soft_prompt

Methods are given as to experiments.compare, and all other flags are those of
experiments.train, which go to every method. Every drill is an ordinary run in a folder of its
own below --output_dir, begun from the same state as the run without the fault; the same
command goes on after Ctrl-C. What comes out is drills.json, a list of rows, and a table.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
from absl import flags as absl_flags

from experiments import compare, folder, hosting, process
from experiments.faults import Settings, drilled
from fedjax_post.core.access import AccessError
from fedjax_post.openness import drills


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    try:
        own, common = _parse(argv)
        if own.help:
            print(__doc__, own.get_help(), sep="\n")
            return 0
        directory = Path(own.output_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-drills")
        if not own.methods:
            raise ValueError("--methods names none; give some, such as fed_avg,fed_bpt")
        methods = compare.plan_runs(own.methods, own.seeds, common, directory)
        methods = [run._replace(label=_short(run.label, methods)) for run in methods]
        chosen = _chosen(own.drills)
        settings = Settings(**{name: own[name].value for name in Settings._fields})
        process.prepare()
        rows = carry_out(methods, chosen, settings)
    except absl_flags.UnrecognizedFlagError as error:
        return _refuse(f"{error}; --help lists the flags, those of experiments.train go with them")
    except (absl_flags.Error, ValueError, OSError, AccessError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with its --output_dir goes on", file=sys.stderr)
        return 130
    told = {"command": shlex.join(argv), "rows": rows}
    folder.write_text(directory / "drills.json", json.dumps(told, indent=2) + "\n")
    print(drills.table(rows), f"\nresults  {directory}/drills.json", sep="\n")
    return 0


def carry_out(
    methods: Sequence[compare.Run], chosen: Sequence[str], settings: Settings
) -> list[dict[str, Any]]:
    """Returns the rows of all drills, methods and seeds; see `drills.over_seeds`.

    Args:
      methods: as `compare.plan_runs` returns them; `label` is the method's name in the rows.
      chosen: of `drills.DRILLS`.
      settings: how hard the faults are.

    Raises:
      ValueError, OSError, AccessError: for input that will not do.
    """
    rows: list[drills.Row] = []
    for run in methods:
        rows += drilled(run, chosen, settings)
        jax.clear_caches()  # the next method shares none of the compiled programs
    return drills.over_seeds(rows)


def _short(label: str, methods: Sequence[compare.Run]) -> str:
    """The algorithm's name alone, where no other method has it."""
    name = label.partition(":")[0]
    others = {run.label for run in methods if run.label != label}
    return label if any(other.partition(":")[0] == name for other in others) else name


def _chosen(given: Sequence[str]) -> list[str]:
    chosen = list(drills.DRILLS) if list(given) == ["all"] else list(given)
    unknown = [name for name in chosen if name not in drills.DRILLS]
    if unknown or not chosen:
        raise ValueError(
            f"--drills={','.join(given)}: give all, or some of {', '.join(drills.DRILLS)}"
        )
    return chosen


def _parse(argv: Sequence[str]) -> tuple[absl_flags.FlagValues, list[str]]:
    own = absl_flags.FlagValues()
    usual = Settings()
    give: dict[str, Any] = {"flag_values": own}
    absl_flags.DEFINE_bool("help", False, "print the flags", **give)
    absl_flags.DEFINE_list("drills", ["all"], f"all, or of {', '.join(drills.DRILLS)}", **give)
    absl_flags.DEFINE_string("methods", "", "name:flag=value:.., with commas between", **give)
    absl_flags.DEFINE_list("seeds", ["0"], "of the runs", **give)
    absl_flags.DEFINE_string("output_dir", None, "a new folder, or one to go on with", **give)
    when = "the first round of a fault (half of the rounds)"
    absl_flags.DEFINE_integer("at_round", None, when, lower_bound=1, **give)
    limit = "clients that get through in a round of rate_limited"
    absl_flags.DEFINE_integer("rate_limit", usual.rate_limit, limit, lower_bound=1, **give)
    absl_flags.DEFINE_integer("refused_client", 0, "whom `refused` refuses", lower_bound=0, **give)
    shut = "how many the exclusions shut out (a quarter)"
    absl_flags.DEFINE_integer("excluded_clients", None, shut, lower_bound=1, **give)
    other = "how far another version's matrices are, in their own deviations"
    absl_flags.DEFINE_float("change", usual.change, other, lower_bound=0.0, **give)
    own_rows = "rows of those shut out that are scored; 0: all"
    absl_flags.DEFINE_integer("own_examples", usual.own_examples, own_rows, lower_bound=0, **give)
    absl_flags.DEFINE_string("passport", "", "of the base (by --model)", **give)
    absl_flags.DEFINE_string("data_licence", "unknown", "of the clients' data", **give)
    common = own(list(argv), known_only=True)[1:]
    hosting.check_typed(argv, common)
    return own, common


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
