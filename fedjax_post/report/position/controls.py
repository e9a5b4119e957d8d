"""Control cells: what a method reaches without that by which it is said to work.

A closed method counts as using the target, and an open one as using the federation, only by what
it gains over its control. A ladder's file marks a cell as a control by `kind = "control"` and
`control =` a key of `CONTROLS`.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from fedjax_post.report.position.ladder import COMPARED, Cell, Ladder, if_hosted, of_kind
from fedjax_post.report.position.thresholds import BEST_OF, LEAST_GAIN, MARGIN

CONTROLS: Mapping[str, str] = {
    "proxy": "the proxy alone, tuned, without the target",
    "stand_in": "the stand-in alone, tuned, without the target",
    "stand_in_untuned": "the stand-in alone, untuned",
    "one_client": "one client alone, without a federation, for as many steps",
    "central": "LoRA on the same rows in one place, without a federation",
    "manual": "a manual prompt, one of ten",
}
_LEARNED = ("proxy", "stand_in", "one_client", "central")
_WHEN = ("base", "final")  # scores of a summary, of which a gain is the difference


class Side(NamedTuple):
    """The scores that a contrast compares."""

    name: str
    scores: dict[int, float]  # by seed, in [0, 1]
    chosen: tuple[str, ...] = ()  # labels of the cells that were the best, without repetition
    left: tuple[str, ...] = ()  # labels of the cells that lack seeds and had no part in the choice
    lacking: str = ""  # why no best one is known


def side_of(cell: Cell) -> Side:
    """Returns a cell as one side of a contrast."""
    return Side(cell.label, scores_of(cell), (cell.label,))


def learns(cell: Cell) -> bool:
    """Returns whether a cell has a budget and settings: methods, and the controls that train."""
    return cell.kind in COMPARED or cell.control in _LEARNED


def controls(ladder: Ladder, key: str) -> list[Cell]:
    """Returns the finished control cells of a key of `CONTROLS`."""
    return [cell for cell in of_kind(ladder, "control") if cell.control == key]


def control_of(ladder: Ladder, cell: Cell) -> tuple[list[Cell], list[str]]:
    """Returns the control cells of a method, and what CONTROLS says of those that are missing.

    One client alone can end below where it began, so that an open method has its start beside it.
    """
    more = []
    if cell.kind == "open":
        keys, more = ["one_client"], [start_of(cell)]
    elif cell.tier == "EMULATOR":
        keys = ["stand_in", "stand_in_untuned"]
    else:
        keys = ["proxy"] if is_silent(cell) else []
    found = {key: controls(ladder, key) for key in keys}
    missing = [CONTROLS[key] for key, cells in found.items() if not cells]
    return [*(one for cells in found.values() for one in cells), *more], missing


def best_control(ladder: Ladder, cell: Cell) -> tuple[Side, list[str]]:
    """Returns the best control of a method, and what CONTROLS says of those that are missing.

    It is chosen and scored on the seeds that the method and all of its controls have.
    """
    others, missing = control_of(ladder, cell)
    each = [set(table) for one in (cell, *others) if (table := scores_of(one))]
    shared = set.intersection(*each) if each else set()
    return best_of("its control", others, seeds=shared), missing


def start_of(cell: Cell) -> Cell:
    """Returns a cell as it was before its first round: the base, as the method uses it."""
    runs = {seed: run._replace(right=run.base) for seed, run in cell.runs.items()}
    return cell._replace(
        method=f"{cell.method}, untuned", label=f"{cell.label}, untuned", runs=runs
    )


def learned(cell: Cell) -> bool:
    """Returns whether a method gained enough over its untuned start to say anything of learning."""
    gains = [
        run.right - run.base
        for run in cell.runs.values()
        if run.right is not None and run.base is not None
    ]
    return not gains or sum(gains) / len(gains) >= LEAST_GAIN.value


def is_silent(cell: Cell) -> bool:
    """Returns whether a closed-side method shows the host of its target nothing in training."""
    values = [if_hosted(run) for run in cell.runs.values()]
    return cell.kind == "closed" and bool(values) and all(value == 0 for value in values)


def left_open(cells: Iterable[Cell]) -> list[str]:
    """Returns the cells that a host's few log-probabilities cost the margin, with the share.

    A row whose rank they leave open counts as wrong, which no model in this process can lose by.
    """
    found = []
    for cell in cells:
        scores = [run.summary.get(when) or {} for run in cell.runs.values() for when in _WHEN]
        worst = max((one.get("accuracy_undecided") or 0.0 for one in scores), default=0.0)
        if worst >= MARGIN.value:
            found.append(f"{cell.label}, {100 * worst:.1f} % of the rows")
    return found


def is_manual(method: str, kind: str, control: str) -> bool:
    """Returns whether a cell of a ladder is a manual prompt."""
    return control == "manual" or (kind == "baseline" and method == "manual_prompt")


def manual_prompts(ladder: Ladder) -> tuple[list[Cell], list[str]]:
    """Returns the cells of manual prompts, and what is missing if there are too few."""
    found = [
        cell
        for kind in ("baseline", "control")
        for cell in of_kind(ladder, kind)
        if is_manual(cell.method, cell.kind, cell.control)
    ]
    enough = len(found) >= BEST_OF.value
    missing = f"the best of ten manual prompts (there are {len(found)})"
    return found, [] if enough else [missing]


def best_prompts(ladder: Ladder) -> tuple[list[Cell], str]:
    """Returns the manual prompts of which the best one counts, and how it is chosen, for people.

    Where all of them were scored on the seed of the search, which is not reported, that is the one
    that was best there, for all seeds. Earlier ladders lack these scores: all prompts are left, and
    `best_of` chooses among them by other seeds, whose rows are reported.
    """
    cells, _ = manual_prompts(ladder)
    search = ladder.facts.get("search") or {}
    tried = search.get("prompts") or {}
    if not cells or any(cell.method not in tried for cell in cells):
        return cells, "by the other seeds of the method that it is compared with, for each seed"
    best = max(cells, key=lambda cell: tried[cell.method])
    return [best], f"by its score on seed {search.get('seed')}, which is not reported"


def best_of(name: str, cells: Iterable[Cell], *, seeds: Collection[int] | None = None) -> Side:
    """Returns, for each seed, the score of the cell that is best by the mean of the other seeds.

    So no cell is chosen by the rows that it is then scored on; one cell needs no choice. A cell
    that lacks seeds which others have leaves the choice. If it is ahead on the seeds that it has,
    no best one is known.

    Args:
      name: of the side.
      cells: the choice.
      seeds: of what the side is compared with, the only ones that count; None for all. A cell with
        more seeds than others must not take their place in a comparison that has no use for them.
    """
    found = {cell.method: (cell.label, _some(scores_of(cell), seeds)) for cell in cells}
    tables = {method: table for method, (_, table) in found.items() if table}
    if not tables:
        return Side(name, {})
    most = max(map(len, tables.values()))
    whole = {method: table for method, table in tables.items() if len(table) == most}
    shared = set.intersection(*map(set, whole.values()))
    if len(whole) > 1 and len(shared) < 2:
        return Side(name, {}, lacking=f"{name} of {len(whole)} is chosen with two seeds or more")
    scores, chosen = {}, []
    for seed in sorted(shared):
        rest = lambda method, seed=seed: sum(whole[method][s] for s in shared if s != seed)
        chosen.append(max(whole, key=rest))
        scores[seed] = whole[chosen[-1]][seed]
    left = [method for method in tables if method not in whole]
    ahead = [found[method][0] for method in left if _is_ahead(tables[method], scores)]
    lacking = f"seeds are missing of {', '.join(ahead)}, ahead on those it has" if ahead else ""
    labels = lambda methods: tuple(found[method][0] for method in dict.fromkeys(methods))
    return Side(name, scores, labels(chosen), labels(left), lacking)


def _some(table: Mapping[int, float], seeds: Collection[int] | None) -> dict[int, float]:
    return {seed: score for seed, score in table.items() if seeds is None or seed in seeds}


def _is_ahead(table: Mapping[int, float], scores: Mapping[int, float]) -> bool:
    """Returns whether a cell is better in the mean over the seeds that it shares with a side."""
    shared = [seed for seed in table if seed in scores]
    return not shared or sum(table[seed] - scores[seed] for seed in shared) > 0


def scores_of(cell: Cell) -> dict[int, float]:
    """Returns a cell's score by seed, where it is known, in [0, 1]."""
    known = {seed: run.right for seed, run in cell.runs.items()}
    return {seed: score for seed, score in known.items() if score is not None}
