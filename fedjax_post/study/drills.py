"""Autonomy drills: what methods lose when the model's host stops, changes the model or refuses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_post.study import autonomy as faults_of
from fedjax_post.study import cells, folder
from fedjax_post.study.faults import Settings, drill
from fedjax_post.study.spec import Spec


class Drilled(NamedTuple):
    """Finished drills and their results."""

    directory: Path
    rows: list[dict[str, Any]]  # see `study.autonomy.over_seeds`

    def table(self) -> str:
        """Returns the rows as a text table."""
        return faults_of.table(self.rows)


def drills(
    specs: Sequence[Spec] | Mapping[str, Spec],
    *,
    chosen: Sequence[str] = faults_of.DRILLS,
    seeds: Sequence[int] = (0,),
    settings: Settings = Settings(),  # noqa: B008 - immutable
    directory: str | Path | None = None,
    command: str = "",
    show: cells.Show = print,
) -> Drilled:
    """Returns the losses of some experiments under faults.

    A fault begins at a state of the undisturbed run, or at the first round where it is an
    exclusion. After an interruption, the same call on the same folder continues.

    Args:
      specs: the experiments, by label or in order.
      chosen: some of `study.autonomy.DRILLS`.
      seeds: of the runs.
      settings: when faults begin and how severe they are.
      directory: a new folder, or that of drills to continue; by default one below `runs`.
      command: how the drills were made, recorded in their file.
      show: called with each line of progress.

    Raises:
      ValueError, OSError, AccessError: for invalid input.
    """
    if wrong := [name for name in chosen if name not in faults_of.DRILLS] or not chosen:
        raise ValueError(f"drills={wrong or chosen}: give some of {', '.join(faults_of.DRILLS)}")
    directory = Path(directory or folder.fresh("drills"))
    planned = cells.plan_runs(cells.label_specs(specs), seeds, directory)
    found = Drilled(directory, carry_out(planned, chosen, settings, show=show))
    folder.write_json(directory / "drills.json", {"command": command, "rows": found.rows})
    return found


def carry_out(
    planned: Sequence[cells.Cell], chosen: Sequence[str], settings: Settings, *, show: cells.Show
) -> list[dict[str, Any]]:
    """Runs all drills, and returns their rows as `study.autonomy.over_seeds` does.

    Args:
      planned: an experiment, seed and folder each.
      chosen: some of `study.autonomy.DRILLS`.
      settings: when faults begin and how severe they are.
      show: called with each line of progress.
    """
    rows: list[faults_of.Row] = []
    for cell in planned:
        rows += drill(cell, chosen, settings, show=show)
        jax.clear_caches()  # the next method shares none of the compiled programs
    return faults_of.over_seeds(rows)
