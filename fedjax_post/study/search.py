"""A search of settings before a ladder: as many trials for each method, on a seed not reported.

Manual prompts have nothing to be searched. Each is scored on that seed once, so that the report can
choose the best of them without the rows that it reports.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.evaluate.heldout import HeldOut, score_names
from fedjax_post.report.position.controls import is_manual
from fedjax_post.report.records import read_summary
from fedjax_post.study import cells
from fedjax_post.study.ladder_facts import Rung


class Setting(NamedTuple):
    """One setting that may be tried."""

    told: Mapping[str, Any]  # what is searched, by name, for the report
    changes: Mapping[str, Any]  # to the experiment, by path


class Search(NamedTuple):
    """Which settings are tried before a ladder is run."""

    settings: Mapping[str, Sequence[Setting]] = {}  # by rung, all that may be tried
    trials: int = 0  # for each of these rungs
    seed: int = 100  # of all trials


class Found(NamedTuple):
    """Methods with the best settings, and how these were found."""

    rungs: dict[str, Rung]
    record: dict[str, Any]  # for `ladder.json`, see `report.position.ladder`


def check(search: Search, rungs: Mapping[str, Rung], seeds: Sequence[int]) -> None:
    """Checks a search.

    Raises:
      ValueError: with the value and the remedy.
    """
    if not search.settings:
        if search.trials:
            raise ValueError(f"search.trials={search.trials}, but there are no settings to try")
        return
    if search.seed in seeds:
        raise ValueError(
            f"search.seed={search.seed} is one of the seeds that are reported; give another one"
        )
    for name, settings in search.settings.items():
        if name not in rungs:
            raise ValueError(f"search names {name}, which is none of {', '.join(rungs)}")
        if not 1 <= search.trials <= len(settings):
            raise ValueError(
                f"search.trials={search.trials} must be from 1 to {len(settings)}, the settings of "
                f"{name}; give more values, or fewer trials"
            )


class Trial(NamedTuple):
    """One run of a search."""

    setting: Setting
    cell: cells.Cell


def plan(search: Search, rungs: Mapping[str, Rung], directory: Path) -> dict[str, list[Trial]]:
    """Returns the trials of each method; which settings are tried is drawn with the search's seed.

    A manual prompt whose settings are not searched has one trial, of what it is.

    Args:
      search: as checked by `check`.
      rungs: the methods by name.
      directory: of the ladder.
    """
    found = {}
    asked = {name: (list(settings), search.trials) for name, settings in search.settings.items()}
    if asked:
        asked |= {name: ([Setting({}, {})], 1) for name in _prompts(search, rungs)}
    for number, (name, (settings, num)) in enumerate(asked.items()):
        rng = np.random.default_rng((search.seed, number))
        drawn = sorted(rng.choice(len(settings), num, replace=False))
        spec = rungs[name].spec.replace(seed=search.seed)
        label, own = rungs[name].title or name, directory / "search" / name
        found[name] = [
            Trial(
                settings[i],
                cells.Cell(
                    f"{label}, trial {n + 1}", spec.put(settings[i].changes), own / f"trial-{n}"
                ),
            )
            for n, i in enumerate(drawn)
        ]
    return found


def plan_cells(search: Search, rungs: Mapping[str, Rung], directory: Path) -> list[cells.Cell]:
    """Returns the runs of all trials; see `plan`."""
    planned = plan(search, rungs, directory)
    return [trial.cell for trials in planned.values() for trial in trials]


def check_scored(heldout: HeldOut, measure: str) -> None:
    """Raises ValueError unless the held-out rows of a trial have the score by which it is compared.

    Args:
      heldout: the rows of a trial.
      measure: the score that is largest for the best one.
    """
    names = score_names(heldout)
    if measure not in names:
        raise ValueError(
            f"measure={measure}: the held-out rows are not scored by it, so that no setting could "
            f"be chosen; there is {', '.join(names)}; exact_match needs scoring.exact_match=on, "
            "and accuracy needs `data.labels`, at a host of one token each and with exact_match=off"
        )


def best(
    search: Search,
    rungs: Mapping[str, Rung],
    directory: Path,
    *,
    measure: str,
    ask_again: bool = False,
    show: cells.Show,
) -> Found:
    """Runs the trials, and returns the methods with the best settings of each.

    Args:
      search: as checked by `check`.
      rungs: the methods by name.
      directory: of the ladder.
      measure: the score that is largest for the best one.
      ask_again: as for `cells.carry_out_all`.
      show: called with each line of progress.

    Raises:
      ValueError: if a trial has not been scored by the measure, naming it.
    """
    planned = plan(search, rungs, directory)
    trials_of_all = plan_cells(search, rungs, directory)
    cells.carry_out_all(trials_of_all, ask_again=ask_again, show=show)
    chosen, record, prompts = dict(rungs), {}, {}
    for name, trials in planned.items():
        scores = [_score(trial.cell, rungs[name], measure) for trial in trials]
        first = int(np.argmax(scores))
        if is_manual(name, rungs[name].kind, rungs[name].control):
            prompts[name] = scores[first]
        if name not in search.settings:
            continue
        chosen[name] = rungs[name]._replace(
            spec=trials[first].cell.spec.replace(seed=rungs[name].spec.seed)
        )
        record[name] = {
            "tried": [dict(trial.setting.told) for trial in trials],
            "scores": scores,
            "chosen": first,
        }
    told = {"seed": search.seed, "trials": search.trials, "cells": record, "prompts": prompts}
    return Found(chosen, told if record else {})


def _prompts(search: Search, rungs: Mapping[str, Rung]) -> list[str]:
    """Returns the names of the manual prompts that have no settings to be searched."""
    manual = [name for name, rung in rungs.items() if is_manual(name, rung.kind, rung.control)]
    return [name for name in manual if name not in search.settings]


def _score(cell: cells.Cell, rung: Rung, measure: str) -> float:
    name = "personal" if rung.spec.scoring.personal else "final"
    scores = read_summary(cell.directory).get(name) or {}
    if measure not in scores:
        raise ValueError(
            f"{cell.label}: measure={measure} is none of the {name} scores in {cell.directory}; "
            f"there is {', '.join(scores) or 'none'}"
        )
    return float(scores[measure])
