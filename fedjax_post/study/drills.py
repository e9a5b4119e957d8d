"""Autonomy drills: what methods lose when whoever hosts the model stops, changes or refuses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_post.study import autonomy as faults_of
from fedjax_post.study import cells, folder
from fedjax_post.study.faults import Settings, drilled
from fedjax_post.study.spec import Spec


class Drilled(NamedTuple):
    """Drills that were carried out."""

    directory: Path
    rows: list[dict[str, Any]]  # see `study.autonomy.over_seeds`

    def table(self) -> str:
        """Returns the rows as a table for people."""
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
    """Returns what some experiments lose by faults, each begun from the undisturbed run's state.

    The same call on the same folder goes on after an interruption.

    Args:
      specs: the experiments, by label or in order.
      chosen: of `study.autonomy.DRILLS`.
      seeds: of the runs.
      settings: how hard the faults are.
      directory: a new folder, or that of drills to go on with; by default below `runs`.
      command: how the drills were made, for their file.
      show: called with a line for each drill.

    Raises:
      ValueError, OSError, AccessError: for input that will not do.
    """
    if wrong := [name for name in chosen if name not in faults_of.DRILLS] or not chosen:
        raise ValueError(f"drills={wrong or chosen}: give some of {', '.join(faults_of.DRILLS)}")
    directory = Path(directory or folder.fresh("drills"))
    planned = cells.planned(cells.labelled(specs), seeds, directory)
    found = Drilled(directory, carry_out(planned, chosen, settings, show=show))
    told = {"command": command, "rows": found.rows}
    folder.write_json(directory / "drills.json", told)
    return found


def carry_out(
    planned: Sequence[cells.Cell], chosen: Sequence[str], settings: Settings, *, show: cells.Show
) -> list[dict[str, Any]]:
    """Returns the rows of all drills, methods and seeds; see `study.autonomy.over_seeds`."""
    rows: list[faults_of.Row] = []
    for cell in planned:
        rows += drilled(cell, chosen, settings, show=show)
        jax.clear_caches()  # the next method shares none of the compiled programs
    return faults_of.over_seeds(rows)
