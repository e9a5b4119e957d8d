"""One task at every level of access, with the same seeds, and a report on it.

Example:
  rungs = {"lora": Rung(spec, "open"), "fed_bpt": Rung(closed, "closed")}
  ladder(rungs, task=Task(title="my task"))
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.integrity import read_file
from fedjax_post.report import position
from fedjax_post.report.comparison import folder_of
from fedjax_post.report.position.budgets import is_off
from fedjax_post.report.position.ladder import LONGER
from fedjax_post.report.records import read_summary
from fedjax_post.study import audits, cells, costs, folder, ladder_facts, leaks, longer, search
from fedjax_post.study.build import build
from fedjax_post.study.drills import carry_out
from fedjax_post.study.job import Job
from fedjax_post.study.ladder_facts import Rung
from fedjax_post.study.ladder_parts import GATE, Extras, Faults, Task, check, restrict
from fedjax_post.study.resolve import resolve
from fedjax_post.study.spec import Spec
from fedjax_post.study.summary import digest

Note = Callable[[cells.Cell, Job], object]


class Position(NamedTuple):
    """A finished ladder and its report."""

    directory: Path
    report: str

    def table(self) -> str:
        """Returns the report as text; `position.html` in the folder holds it as a page."""
        return self.report


def ladder(
    rungs: Mapping[str, Rung],
    *,
    task: Task = Task(),  # noqa: B008 - immutable
    seeds: Sequence[int] = (0,),
    extras: Extras = Extras(),  # noqa: B008 - immutable
    directory: str | Path | None = None,
    ask_again: bool = False,
    command: str = "",
    show: cells.Show = print,
) -> Position:
    """Runs one task at every level of access, and returns the report.

    After an interruption, the same call on the same folder continues. Methods and seeds may be
    added in the same way. The report is written when all cells have run, and again after the
    drills, the attacks and the longer runs. Several processes may make the same call: they share
    the cells, and the first one that finds all of them done makes the report.

    Args:
      rungs: the methods by name; each name is also that of a folder.
      task: its title, and its gate: the rungs of a manual prompt ("manual"), of a soft prompt
        ("soft") and of the method whose gain the soft prompt is compared with ("full"); the score
        by which cells are compared, and the budget of each.
      seeds: of the runs.
      extras: other base models, drills, attacks, longer runs, the search of settings that comes
        first, and which cells are run, if not all.
      directory: a new folder, or that of a ladder to continue; by default one below `runs`.
      ask_again: whether to repeat calls to a provider that may have been paid for already.
      command: how the ladder was made, recorded in the report.
      show: called with each line of progress.

    Raises:
      ValueError, OSError, AccessError: for invalid input, before any run starts.
    """
    check(rungs, task, extras, seeds)
    with folder.given_or_fresh(directory, "ladder") as where:
        given = rungs, task, seeds, extras, where
        return _climb(*given, command=command, ask_again=ask_again, show=show)


def _climb(
    rungs: Mapping[str, Rung],
    task: Task,
    seeds: Sequence[int],
    extras: Extras,
    directory: Path,
    *,
    command: str,
    ask_again: bool,
    show: cells.Show,
) -> Position:
    """Runs what `ladder` has checked, in a folder."""
    how: Any = {"ask_again": ask_again, "show": show}
    trials = search.plan_cells(extras.search, rungs, directory)
    note = lambda cell, job: search.check_scored(job.parts.heldout, task.measure)
    cells.check(trials, note_fn=note)
    if not all(trial.done for trial in trials):  # else all is checked below, with what they found
        _check_all(*restrict(rungs, extras), seeds, directory / "search")
    found = search.best(extras.search, rungs, directory, measure=task.measure, **how)
    rungs = found.rungs
    asked, beside = restrict(rungs, extras)
    _check_all(asked, beside, seeds, directory)
    cells.check_dtypes(plan_cells(rungs, seeds, extras.bases, directory))
    planned = plan_cells(asked, seeds, beside.bases, directory)
    done = sum(cell.done for cell in planned)
    show(f"{len(planned)} runs, {done} of them finished, in {directory}")
    cells.carry_out_all(planned, **how)
    with folder.claim(directory) as mine:
        if not mine:
            told = "if it was called with fewer cells, repeat this command for drills and attacks"
            return Position(directory, f"another process makes the report, in {directory}; {told}")
        begun = sorted({*seeds, *audits.finished_seeds(directory, rungs)})
        methods = [
            rung for rung in rungs.values() if rung.kind != "control"
        ]  # of the ladder's base
        first = (methods or list(rungs.values()))[0].spec.replace(seed=begun[0])
        facts = _facts(rungs, task, extras, directory, first=first, command=command)
        facts["search"] = found.record
        if extras.only:
            return Position(directory, _write(directory, facts))
        return Position(directory, _report(facts, rungs, begun, extras, directory, **how))


def _report(
    facts: dict[str, Any],
    rungs: Mapping[str, Rung],
    seeds: Sequence[int],
    extras: Extras,
    directory: Path,
    *,
    ask_again: bool,
    show: cells.Show,
) -> str:
    """Writes the report on the cells, and again after the drills, attacks and longer runs.

    These are of all seeds that the cells have: a table of them is one, whatever call added a seed.
    """
    given: Any = rungs, seeds, directory
    how: Any = {"ask_again": ask_again, "show": show}
    report, measure = _write(directory, facts), facts["measure"]
    for name, make in {
        "drills": lambda: _drill(extras.faults, *given, measure=measure, **how),
        "attacks": lambda: leaks.carry_out(extras.leaks, *given, **how),
    }.items():
        facts[name] = make()
        report = _write(directory, facts)
    if more := longer.plan_cells(extras.longer, *given):
        cells.carry_out_all(more, **how)
        report = position.write(directory)
    return report


def _facts(
    rungs: Mapping[str, Rung],
    task: Task,
    extras: Extras,
    directory: Path,
    *,
    first: Spec,
    command: str,
) -> dict[str, Any]:
    """Returns what `ladder.json` says of the cells, and what it said before of the rest."""
    parts = build(resolve(first))
    chance = ladder_facts.chance_of(parts)
    path = directory / "ladder.json"
    before = read_file(path) if path.exists() else {}
    return {
        **before,
        "task": task.title,
        "model": parts.spec.model.name,
        "measure": task.measure,
        "budget": task.budget,
        "chance": chance,
        "labels": list(parts.spec.data.labels),
        "cells": ladder_facts.cell_entries(rungs),
        "gate": ladder_facts.gate_of(
            directory, chance, measure=task.measure, **(GATE | dict(task.gate))
        ),
        "matrix": ladder_facts.matrix_entry(),
        "passports": ladder_facts.passport_entries(),
        "other_bases": ladder_facts.base_entries(parts.spec.model.name, extras.bases),
        LONGER: {"times": extras.longer.times} if extras.longer.cells else {},
        "audit": audits.read_or_make(directory, parts, list(rungs)),
        "commands": list(dict.fromkeys([*before.get("commands", []), *filter(None, [command])])),
    }


def _write(directory: Path, facts: Mapping[str, Any]) -> str:
    """Writes `ladder.json` and the report, and returns the report."""
    folder.write_json(directory / "ladder.json", facts)
    return position.write(directory)


def plan(
    rungs: Mapping[str, Rung],
    *,
    task: Task = Task(),  # noqa: B008 - immutable
    seeds: Sequence[int] = (0,),
    extras: Extras = Extras(),  # noqa: B008 - immutable
) -> str:
    """Returns the runs of a ladder and their costs as text, after each was checked; none is run.

    Args:
      rungs: the methods by name.
      task: with its budget.
      seeds: of the runs.
      extras: other base models, drills, attacks and the search.

    Raises:
      ValueError, OSError, AccessError: as `ladder` does before any run starts.
    """
    check(rungs, task, extras, seeds)
    directory = folder.unused("ladder")
    trials = search.plan_cells(extras.search, rungs, directory)
    found: dict[str, costs.Cost] = {}
    tried: dict[str, costs.Cost] = {}

    def note_in(costs_of: dict[str, costs.Cost]) -> Note:
        return lambda cell, job: costs_of.update({cell.label: costs.expected(job.parts)})

    def note_trial(cell: cells.Cell, job: Job) -> None:
        search.check_scored(job.parts.heldout, task.measure)
        method = cell.spec.method  # alone, a client has a budget of steps; a manual prompt has none
        if method.baseline != "local" and method.name != "manual_prompt":
            note_in(tried)(cell, job)

    asked, beside = restrict(rungs, extras)
    num_planned, num_more = _check_all(asked, beside, seeds, directory, note_fn=note_in(found))
    cells.check(trials, note_fn=note_trial)
    lines = [f"{name}: {rung.kind} {rung.control}".rstrip() for name, rung in asked.items()]
    told = f"{len(trials)} trials before them, {num_more} that are attacked or longer"
    return "\n".join(
        [
            *lines,
            "",
            costs.table(found, budget=task.budget),
            *_off_budget(tried, task.budget),
            "",
            f"{num_planned} runs, without drills; all can start; {told}",
        ]
    )


def _off_budget(tried: Mapping[str, costs.Cost], budget: int | None) -> list[str]:
    """Returns lines on the trials that will spend another amount than the ladder's budget."""
    shares = {} if budget is None else {name: cost.tokens / budget for name, cost in tried.items()}
    off = [f"{name}: {share:.2f}" for name, share in shares.items() if is_off(share)]
    return ["", "trials off the budget:", *off] if off else []


def plan_cells(
    rungs: Mapping[str, Rung],
    seeds: Sequence[int],
    bases: Mapping[str, Sequence[str]],
    directory: Path,
) -> list[cells.Cell]:
    """Returns the runs of all rungs, ordered by seed, then those on other base models.

    Args:
      rungs: the methods by name.
      seeds: of the runs.
      bases: other base models, each with the names of the rungs that run on it too.
      directory: of the ladder.
    """
    found = [
        cells.Cell(
            rung.title or name, rung.spec.replace(seed=seed), directory / name / f"seed-{seed}"
        )
        for seed in seeds
        for name, rung in rungs.items()
    ]
    return found + [
        cells.Cell(
            f"{rungs[name].title or name}, on {base}",
            rungs[name].spec.replace(seed=seed).put({"model.name": base}),
            directory / "bases" / folder_of(base) / name / f"seed-{seed}",
        )
        for seed in seeds
        for base, names in bases.items()
        for name in names
    ]


def _check_all(
    rungs: Mapping[str, Rung],
    extras: Extras,
    seeds: Sequence[int],
    directory: Path,
    *,
    note_fn: Note = lambda cell, job: None,
) -> tuple[int, int]:
    """Checks all runs that can be checked beforehand; those of drills depend on what they find.

    Args:
      rungs: the methods by name.
      extras: other base models, attacks and longer runs.
      seeds: of the runs.
      directory: of the ladder.
      note_fn: called with the first run of each cell, and its job, unless the run has begun.

    Returns:
      The number of cells' runs, and of those that are attacked or longer.
    """
    planned = plan_cells(rungs, seeds, {}, directory)
    rows: dict[str, str] = {}

    def note(cell: cells.Cell, job: Job) -> None:
        note_fn(cell, job)
        if not rows:
            rows.update(_scored_rows(directory, cell.spec.seed))
        rows[cell.label] = digest(job.parts.heldout)

    cells.check(planned, note_fn=note)
    differ = list({value: label for label, value in rows.items()}.values())
    if len(differ) > 1:
        raise ValueError(
            f"{differ[0]} and {differ[1]} would be scored on different held-out rows, and cannot "
            "be compared: a prompt leaves out rows that are too long; raise max_length"
        )
    others = plan_cells(rungs, seeds, extras.bases, directory)[len(planned) :]
    more = [
        *leaks.plan_cells(extras.leaks, rungs, seeds, directory),
        *longer.plan_cells(extras.longer, rungs, seeds, directory),
    ]
    cells.check(others, note_fn=note_fn)
    cells.check(more)
    cells.check_dtypes([*planned, *others, *more])
    return len(planned) + len(others), len(more)


def _scored_rows(directory: Path, seed: int) -> dict[str, str]:
    """Returns the digest of the held-out rows of each finished cell with a seed, by its folder."""
    found = {path.parts[-3]: path.parent for path in directory.glob(f"*/seed-{seed}/summary.json")}
    digests = {name: read_summary(path).get("heldout_digest") for name, path in found.items()}
    return {name: value for name, value in digests.items() if value}


def _drill(
    faults: Faults,
    rungs: Mapping[str, Rung],
    seeds: Sequence[int],
    directory: Path,
    *,
    measure: str,
    ask_again: bool,
    show: cells.Show,
) -> list[dict[str, Any]]:
    """Runs the drills of a ladder with every seed, and returns their rows."""
    planned = [
        cells.Cell(
            rungs[name].title or name,
            rungs[name].spec.replace(seed=seed).put(faults.changes),
            directory / "drills" / name / f"seed-{seed}",
        )
        for name in faults.cells
        for seed in seeds
    ]
    if not planned:
        return []
    settings = faults.settings._replace(measure=measure)
    return carry_out(planned, faults.chosen, settings, ask_again=ask_again, show=show)
