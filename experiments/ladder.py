"""One task at every level of access, on the same clients, seeds and budget, and its report.

    python -m experiments.openness --task=kinds --seeds=0

A task is a file in `experiments/ladders`, or one of your own by its path ending in .toml:

    [task]              title; gate = { manual, soft, full }: the cells that show whether the base
                        can be prompted (manual_prompt, soft_prompt and lora)
    [common]            flags of experiments.train for every run
    [cells.NAME]        title, kind = "open", "closed" or "baseline"; all else are flags of its own
    [bases]             other bases for H6: names, and which cells run on them
    [drills]            cells and drills; flags for their runs; all else as in experiments.drills

Each cell is an ordinary run in a folder `<output_dir>/NAME/seed-<seed>`. Ctrl-C or a kill loses
nothing; the same command goes on, and more seeds or cells may be added.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import compare, hosting

FOLDER = Path(__file__).parent / "ladders"
KINDS = ("open", "closed", "baseline")
_TOLD = ("title", "kind")
_TABLES = ("task", "common", "cells", "bases", "drills")


class Cell(NamedTuple):
    """One method of the ladder."""

    name: str
    title: str  # as the report calls it
    kind: str  # of KINDS
    flags: Mapping[str, Any]  # of experiments.train, over the common ones


class Ladder(NamedTuple):
    """A task, and the methods that are tried on it."""

    task: Mapping[str, Any]
    common: Mapping[str, Any]
    cells: tuple[Cell, ...]
    bases: Mapping[str, Any]  # {"names": [...], "cells": [...]}, or nothing
    drills: Mapping[str, Any]


def ladder_names() -> list[str]:
    """Returns the tasks that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_ladder(name: str) -> Ladder:
    """Returns the ladder of a task, checked.

    Args:
      name: of `ladder_names()`, or the path of a file of one's own, ending in .toml.

    Raises:
      ValueError: naming the flag, the field and the remedy.
      FileNotFoundError: if there is no such file.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.exists():
        raise FileNotFoundError(
            f"--task={name}: there is no {path}; give a path ending in .toml, or one of "
            f"{', '.join(ladder_names())}"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"--task={name}: {path} is no TOML: {error}") from None
    unknown = [table for table in content if table not in _TABLES]
    if unknown or not content.get("cells"):
        raise ValueError(
            f"--task={name}: {f'[{unknown[0]}] is unknown' if unknown else '[cells] is missing'}; "
            f"the tables are {', '.join(_TABLES)}"
        )
    cells = tuple(_cell(name, cell, told) for cell, told in content["cells"].items())
    rest = (content.get(table, {}) for table in ("bases", "drills"))
    return Ladder(content.get("task", {}), content.get("common", {}), cells, *rest)


def plan_runs(
    ladder: Ladder, seeds: Sequence[int], given: Sequence[str], output_dir: Path
) -> list[compare.Run]:
    """Returns the runs of all cells, all of the first seed first, then those on other bases.

    Args:
      ladder: the task.
      seeds: of the runs.
      given: flags of experiments.train that go to every run, over the file's.
      output_dir: of the whole ladder.
    """
    runs = [
        _run(ladder, cell, seed, given, output_dir / cell.name)
        for seed in seeds
        for cell in ladder.cells
    ]
    wanted = ladder.bases.get("cells", [])
    return runs + [
        _run(
            ladder, cell, seed, [*given, f"--model={base}"], output_dir / "bases" / base / cell.name
        )
        for seed in seeds
        for base in ladder.bases.get("names", [])
        for cell in ladder.cells
        if cell.name in wanted
    ]


def flags_of(table: Mapping[str, Any]) -> list[str]:
    """Returns a table of a ladder's file as flags."""
    return [f"--{name}={_text(value)}" for name, value in table.items()]


def seeds_of(given: Sequence[str]) -> list[int]:
    """Returns the seeds, as numbers.

    Raises:
      ValueError: if one is no whole number or is there twice.
    """
    if not given or not all(seed.strip().isdecimal() for seed in given):
        raise ValueError(f"--seeds={','.join(given)} must be whole numbers, such as 0,1,2")
    seeds = [int(seed) for seed in given]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={','.join(given)} has a seed twice; give it once")
    return seeds


def _run(ladder: Ladder, cell: Cell, seed: int, given: Sequence[str], folder: Path) -> compare.Run:
    own = [*flags_of(ladder.common), *flags_of(cell.flags), *given, f"--seed={seed}"]
    hosting.check_typed(given, own)
    return compare.Run(cell.title, seed, folder / f"seed-{seed}", own)


def _cell(task: str, name: str, told: Mapping[str, Any]) -> Cell:
    if told.get("kind") not in KINDS:
        raise ValueError(
            f"--task={task}: [cells.{name}] has kind = {told.get('kind')!r}; "
            f"give one of {', '.join(KINDS)}"
        )
    own = {key: value for key, value in told.items() if key not in _TOLD}
    return Cell(name, told.get("title", name), told["kind"], own)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
