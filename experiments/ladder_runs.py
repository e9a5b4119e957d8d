"""Carries out a ladder: its runs, its drills, the audit of its base, and the report over them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import audits, compare, drills, flags, folder, hosting, ladder_facts
from experiments.build import build
from experiments.faults import Settings
from experiments.ladder import Ladder, flags_of, plan_runs, read_ladder
from fedjax_post.openness.drills import DRILLS
from fedjax_post.report import position

_GATE = {"manual": "manual_prompt", "soft": "soft_prompt", "full": "lora"}


def carry_out(
    task: str, seeds: Sequence[int], given: Sequence[str], output_dir: Path, *, command: str
) -> int:
    """Carries out what is not finished yet, writes the report and prints it; an exit code.

    Args:
      task: as for `read_ladder`.
      seeds: of the runs.
      given: flags of experiments.train for every run, over the file's.
      output_dir: a new folder, or that of a ladder to go on with.
      command: what was called, for the report.

    Raises:
      ValueError, OSError, AccessError: for input that will not do, before any run is started.
    """
    ladder = read_ladder(task)
    runs = plan_runs(ladder, seeds, given, output_dir)
    compare.check_runs(runs)
    print(f"{len(runs)} runs, {sum(run.done for run in runs)} of them finished, in {output_dir}")
    if code := compare.carry_out(runs):
        return code
    write_facts(ladder, runs, output_dir, command=command)
    print(position.write(output_dir))
    return 0


def write_facts(
    ladder: Ladder, runs: Sequence[compare.Run], output_dir: Path, *, command: str
) -> None:
    """Measures what stands beside the runs, and writes `ladder.json`."""
    options = flags.parse(["train", *runs[0].given])
    job = build(options)
    chance = ladder_facts.chance_of(job)
    named = _GATE | dict(ladder.task.get("gate", {}))
    told = {
        "task": ladder.task.get("title", "a task"),
        "model": options.model,
        "chance": chance,
        "labels": list(options.labels),
        "cells": ladder_facts.cells_told(ladder.cells),
        "gate": ladder_facts.gate_of(output_dir, chance, **named),
        "matrix": ladder_facts.matrix_told(),
        "passports": ladder_facts.passports_told(),
        "audit": _kept(output_dir / "audit.json", lambda: audits.audit_of(job, options)),
        "drills": _drilled(ladder, runs, output_dir),
        "commands": _commands(output_dir, command),
    }
    folder.write_text(output_dir / "ladder.json", json.dumps(told, indent=2) + "\n")


def _drilled(ladder: Ladder, runs: Sequence[compare.Run], output_dir: Path) -> list[dict[str, Any]]:
    """The rows of the drills of the file's `[drills]`, for every seed."""
    told = dict(ladder.drills)
    wanted, chosen = told.pop("cells", []), told.pop("drills", list(DRILLS))
    own = flags_of(told.pop("flags", {}))
    hosting.check_typed((), own)
    names = {cell.name: cell.title for cell in ladder.cells}
    methods = [
        compare.Run(names[name], run.seed, output_dir / "drills" / name / f"seed-{run.seed}",
                    [*run.given, *own])
        for name in wanted
        for run in runs
        if run.directory.parent == output_dir / name
    ]  # fmt: skip
    return drills.carry_out(methods, chosen, Settings(**told)) if methods else []


def _kept(path: Path, make: Any) -> Mapping[str, Any]:
    """What a file holds; made and written first where there is none."""
    if not path.exists():
        folder.write_text(path, json.dumps(make(), indent=2) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def _commands(output_dir: Path, command: str) -> list[str]:
    """The commands that made the ladder so far, each once."""
    path = output_dir / "ladder.json"
    before = json.loads(path.read_text(encoding="utf-8"))["commands"] if path.exists() else []
    return list(dict.fromkeys([*before, command]))
