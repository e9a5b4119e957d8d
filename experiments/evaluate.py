"""Scores a run, an adapter's folder or a base, on its own data or on other data.

    python -m experiments.evaluate runs/<a run>
    python -m experiments.evaluate runs/<a run> --dataset=rows.jsonl --eval_clients=4
    python -m experiments.evaluate builtin --dataset=builtin-kinds

Scores are over the held-out rows, all of them, each kind of task and each client's, and over the
rows of held-out clients. All flags are those of experiments.train; those not given are as in the
run.

    python -m experiments.evaluate runs/<a run> --tasks=hellaswag,<a task's file>.yaml

runs tasks of lm-eval in place of these, and adds their scores to the run's harness.jsonl.
--template=chat writes questions by the chat template; --dataset is the folder of the data that
files of tasks name.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from fedjax_post import study
from fedjax_post.experiments import process, program
from fedjax_post.experiments.flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _evaluate(argv))


def _define(values: flags.FlagValues) -> None:
    give: dict[str, Any] = {"flag_values": values}
    tasks = "names of lm-eval's tasks, files of your own (.yaml), or their folders; extra [eval]"
    flags.DEFINE_list("tasks", None, tasks, **give)
    shots = "examples before each question of the tasks (as each says)"
    flags.DEFINE_integer("num_fewshot", None, shots, lower_bound=0, **give)
    flags.DEFINE_integer("limit", None, "rows of each task (all)", lower_bound=1, **give)
    flags.DEFINE_bool("trust_code", False, "run code that files of tasks name", **give)


def _evaluate(argv: Sequence[str]) -> int:
    words = ("a run, an adapter's folder or a base",)
    line = parse(argv, about=__doc__, own=[_define], words=words)
    if line.help is not None:
        print(line.help)
        return 0
    own = {name: line.values[name].value for name in ("num_fewshot", "limit", "trust_code")}
    if line.values.tasks is None:
        for name in own:
            if line.values[name].present:
                raise ValueError(f"--{name} is for --tasks; give these, or leave it out")
        print(study.evaluate(line.words[0], line.typed).table())
        return 0
    own["trust_code"] = own["trust_code"] and "trust_code" in line.by_hand
    found = study.evaluate_tasks(
        line.words[0],
        line.values.tasks,
        line.typed,
        **own,
        command=process.command("evaluate", argv),
    )
    print(found.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
