"""Control cells: what a method reaches without that by which it is said to work.

A closed method counts as using the target, and an open one as using the federation, only by what
it gains over its control. A ladder's file marks a cell as a control by `kind = "control"` and
`control =` a key of `CONTROLS`.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedjax_post.report.position.ladder import COMPARED, Cell, Ladder, if_hosted, of_kind
from fedjax_post.report.position.thresholds import BEST_OF

CONTROLS: Mapping[str, str] = {
    "proxy": "the proxy alone, tuned, without the target",
    "stand_in": "the stand-in alone, tuned, without the target",
    "stand_in_untuned": "the stand-in alone, untuned",
    "one_client": "one client alone, without a federation, for as many steps",
    "central": "LoRA on the same rows in one place, without a federation",
    "manual": "a manual prompt, one of ten",
}
_LEARNED = ("proxy", "stand_in", "one_client", "central")


class Side(NamedTuple):
    """The scores that a contrast compares."""

    name: str
    scores: dict[int, float]  # by seed, in [0, 1]
    chosen: tuple[str, ...] = ()  # labels of the cells that were the best, without repetition


def learns(cell: Cell) -> bool:
    """Returns whether a cell has a budget and settings: methods, and the controls that train."""
    return cell.kind in COMPARED or cell.control in _LEARNED


def controls(ladder: Ladder, key: str) -> list[Cell]:
    """Returns the finished control cells of a key of `CONTROLS`."""
    return [cell for cell in of_kind(ladder, "control") if cell.control == key]


def control_of(ladder: Ladder, cell: Cell) -> tuple[list[Cell], list[str]]:
    """Returns the control cells of a method, and what CONTROLS says of those that are missing."""
    if cell.kind == "open":
        keys = ["one_client"]
    elif cell.tier == "EMULATOR":
        keys = ["stand_in", "stand_in_untuned"]
    else:
        keys = ["proxy"] if is_silent(cell) else []
    found = {key: controls(ladder, key) for key in keys}
    missing = [CONTROLS[key] for key, cells in found.items() if not cells]
    return [one for cells in found.values() for one in cells], missing


def is_silent(cell: Cell) -> bool:
    """Returns whether a closed-side method shows the host of its target nothing in training."""
    values = [if_hosted(run) for run in cell.runs.values()]
    return cell.kind == "closed" and bool(values) and all(value == 0 for value in values)


def manual_prompts(ladder: Ladder) -> tuple[list[Cell], list[str]]:
    """Returns the cells of manual prompts, and what is missing if there are too few."""
    own = [cell for cell in of_kind(ladder, "baseline") if cell.method == "manual_prompt"]
    found = own + controls(ladder, "manual")
    enough = len(found) >= BEST_OF.value
    missing = f"the best of ten manual prompts (there are {len(found)})"
    return found, [] if enough else [missing]


def best_of(name: str, cells: Iterable[Cell]) -> Side:
    """Returns, for each seed, the score of the cell that is best by the mean of the other seeds.

    So no cell is chosen by the rows that it is then scored on. Seeds that a cell lacks are left
    out; one cell needs no choice.
    """
    tables = {cell.label: scores_of(cell) for cell in cells}
    tables = {label: table for label, table in tables.items() if table}
    if not tables:
        return Side(name, {})
    seeds = set.intersection(*(set(table) for table in tables.values()))
    if len(tables) == 1:
        label, table = next(iter(tables.items()))
        return Side(name, table, (label,))
    if len(seeds) < 2:
        return Side(name, {})
    scores, chosen = {}, []
    for seed in sorted(seeds):
        rest = lambda label, seed=seed: sum(tables[label][s] for s in seeds if s != seed)
        chosen.append(max(tables, key=rest))
        scores[seed] = tables[chosen[-1]][seed]
    return Side(name, scores, tuple(dict.fromkeys(chosen)))


def scores_of(cell: Cell) -> dict[int, float]:
    """Returns a cell's score by seed, where it is known, in [0, 1]."""
    known = {seed: run.right for seed, run in cell.runs.items()}
    return {seed: score for seed, score in known.items() if score is not None}
