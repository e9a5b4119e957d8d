"""Runs of a ladder's methods with several times its budget: a second column beside the scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.report.position.ladder import COMPARED, LONGER
from fedjax_post.study import cells
from fedjax_post.study.ladder_facts import Rung
from fedjax_post.study.spec import Spec


class Longer(NamedTuple):
    """Which methods of a ladder are run with several times its budget.

    Attributes:
      cells: names of open and closed rungs.
      times: factor of their rounds; of a method with one round, `changes` state what is more.
      changes: rung -> further changes to its experiment, by path.
      seeds: how many of the ladder's seeds are run, the first ones.
    """

    cells: Sequence[str] = ()
    times: int = 10
    changes: Mapping[str, Mapping[str, Any]] = {}
    seeds: int = 1


def check(longer: Longer, rungs: Mapping[str, Rung]) -> None:
    """Checks which methods are run longer.

    Raises:
      ValueError: with the value and the remedy.
    """
    for name, value, least in (("times", longer.times, 2), ("seeds", longer.seeds, 1)):
        if value < least:
            raise ValueError(f"longer.{name}={value} must be at least {least}")
    for name in (*longer.cells, *longer.changes):
        if name not in rungs or rungs[name].kind not in COMPARED:
            raise ValueError(f"longer names {name}, which is no open or closed method")
    for name in longer.changes:
        if name not in longer.cells:
            raise ValueError(f"longer has flags for {name}, which is none of its cells; add it")
    for name in longer.cells:
        if rungs[name].spec.training.rounds == 1 and not longer.changes.get(name):
            raise ValueError(
                f"longer names {name}, which has one round; state what it has more of, such as "
                "num_epochs"
            )


def plan_cells(
    longer: Longer, rungs: Mapping[str, Rung], seeds: Sequence[int], directory: Path
) -> list[cells.Cell]:
    """Returns the longer runs, without points on the way, ordered by seed.

    Args:
      longer: as checked by `check`.
      rungs: the methods by name, with the settings that a search has found.
      seeds: of the ladder.
      directory: of the ladder.
    """
    return [
        cells.Cell(
            f"{rungs[name].title or name}, {longer.times} times the budget",
            _longer(longer, name, rungs[name]).replace(seed=seed),
            directory / LONGER / name / f"seed-{seed}",
        )
        for seed in seeds[: longer.seeds]
        for name in longer.cells
    ]


def _longer(longer: Longer, name: str, rung: Rung) -> Spec:
    rounds = rung.spec.training.rounds
    more = {} if rounds == 1 else {"training.rounds": rounds * longer.times}
    return rung.spec.put({"scoring.every": 0} | more | dict(longer.changes.get(name, {})))
