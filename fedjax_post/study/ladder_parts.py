"""What a ladder consists of beside its methods, and the checks of all of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.report.position.controls import CONTROLS
from fedjax_post.report.position.ladder import MEASURES
from fedjax_post.study import cells, folder, leaks, longer, search
from fedjax_post.study.autonomy import DRILLS
from fedjax_post.study.drills import check as check_drills
from fedjax_post.study.faults import Settings
from fedjax_post.study.fields import unknown
from fedjax_post.study.ladder_facts import Rung
from fedjax_post.study.leaks import Leaks
from fedjax_post.study.longer import Longer
from fedjax_post.study.search import Search

KINDS = ("open", "closed", "baseline", "control")
GATE = {"manual": "manual_prompt", "soft": "soft_prompt", "full": "lora"}


class Task(NamedTuple):
    """The task of a ladder."""

    title: str = "a task"
    # Names of the rungs that show whether the base model can be prompted, by the keys of `GATE`
    gate: Mapping[str, str] = GATE
    measure: str = "exact_match"  # the score by which cells are compared, of `MEASURES`
    budget: int | None = None  # tokens through the model for a run of each cell; None: not stated


class Faults(NamedTuple):
    """Which methods of a ladder are drilled, and how."""

    cells: Sequence[str] = ()  # names of rungs
    chosen: Sequence[str] = DRILLS
    changes: Mapping[str, Any] = {}  # to their experiments, by path
    settings: Settings = Settings()


class Extras(NamedTuple):
    """What a ladder measures beside its cells, how their settings are found, and which are run."""

    bases: Mapping[str, Sequence[str]] = {}  # other base -> names of the rungs that run on it too
    faults: Faults = Faults()
    leaks: Leaks = Leaks()
    search: Search = Search()
    longer: Longer = Longer()
    # Names of rungs: the cells of others, drills, attacks and longer runs are left as they are. The
    # search, whose record is one, and the report are of all rungs.
    only: Sequence[str] = ()


def check(
    rungs: Mapping[str, Rung], task: Task, extras: Extras, seeds: Sequence[int] | None = None
) -> None:
    """Checks all that can be checked without a model: names, kinds, controls and settings.

    Args:
      rungs: the methods by name.
      task: how they are compared.
      extras: what else is measured.
      seeds: of the runs; None if they are not known yet.

    Raises:
      ValueError: with the name and the remedy.
    """
    _check_rungs(rungs)
    _check_task(task)
    _check_named("only", extras.only, rungs)
    if seeds is not None:
        cells.check_seeds(seeds)
    search.check(extras.search, rungs, seeds or ())
    longer.check(extras.longer, rungs)
    leaks.check(extras.leaks, rungs)
    check_drills(extras.faults.chosen)
    _check_named("drills", extras.faults.cells, rungs)
    for base, names in extras.bases.items():
        if not names:
            raise ValueError(f"no method runs on the other base {base}; name some, or leave it out")
        _check_named(f"the other base {base}", names, rungs)


def _check_rungs(rungs: Mapping[str, Rung]) -> None:
    if not rungs:
        raise ValueError("rungs are empty; give at least one method")
    for name, rung in rungs.items():
        folder.plain(name)
        if rung.kind not in KINDS:
            raise ValueError(f"{name} has kind={rung.kind!r}; give one of {', '.join(KINDS)}")
        if (rung.control in CONTROLS) != (rung.kind == "control"):
            raise ValueError(
                f"{name} has kind={rung.kind!r} and control={rung.control!r}; a control, and "
                f"nothing else, names one of {', '.join(CONTROLS)}"
            )


def _check_task(task: Task) -> None:
    for key in task.gate:
        if key not in GATE:
            raise ValueError(f"gate: {unknown(key, GATE, what='part of it')}")
    if task.measure not in MEASURES:
        raise ValueError(f"measure={task.measure} must be one of {', '.join(MEASURES)}")
    if task.budget is not None and task.budget < 1:
        raise ValueError(f"budget={task.budget} must be at least 1 token, or left out")


def restrict(rungs: Mapping[str, Rung], extras: Extras) -> tuple[Mapping[str, Rung], Extras]:
    """Returns the rungs that are run, and what is measured beside them.

    Args:
      rungs: the methods by name.
      extras: of the ladder. With `only`, the search and other bases are left of it.
    """
    if not extras.only:
        return rungs, extras
    bases = {b: [n for n in names if n in extras.only] for b, names in extras.bases.items()}
    some = {base: names for base, names in bases.items() if names}
    kept = {name: rung for name, rung in rungs.items() if name in extras.only}
    return kept, Extras(bases=some, search=extras.search)


def _check_named(what: str, names: Iterable[str], rungs: Mapping[str, Rung]) -> None:
    for name in names:
        if name not in rungs:
            raise ValueError(f"{what}: {unknown(name, rungs, what='method of the ladder')}")
