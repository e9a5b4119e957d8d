"""What each method gains: over its own start, one client alone, LoRA in one place, prompts by hand.

A gain is a paired difference, over the seeds that both sides have. Where cells are compared by the
rank of labels, a second table has calibrated scores, see `ladder.calibrated`: a gain that is in
the first table alone is one in how the labels are preferred without a row.
"""

from collections.abc import Mapping, Sequence

from fedjax_post.report.comparison import interval
from fedjax_post.report.markup import Block, Prose, Table
from fedjax_post.report.position.controls import (
    best_of,
    best_prompts,
    controls,
    learns,
    scores_of,
    start_of,
)
from fedjax_post.report.position.ladder import (
    CALIBRATED,
    MEASURES,
    Cell,
    Ladder,
    Run,
    measure_of,
    on_all_rows,
)
from fedjax_post.report.position.rules import percent, points


def gains(ladder: Ladder) -> list[Block]:
    """Returns a table of gains, and a calibrated one if cells are compared by rank."""
    if not any(map(_is_shown, ladder.cells)):
        return [Prose("Missing: a finished run of a method that learns.")]
    found: list[Block] = [
        Prose(
            "In points: paired differences over the seeds that both sides have, with 95 % "
            f"intervals (Student's t). The best manual prompt is chosen {best_prompts(ladder)[1]}. "
            "'own rows': models of each client's own on that client's rows, whose labels have a "
            "mixture of their own; so they are compared with nothing."
        )
    ]
    measure = ladder.facts.get("measure", "exact_match")
    found.append(_table(ladder, measure))
    if measure_of(ladder) == MEASURES["accuracy"]:
        cells = [_scored(cell, CALIBRATED) for cell in ladder.cells]
        found += [
            Prose("The same, calibrated:"),
            _table(ladder._replace(cells=cells), CALIBRATED),
        ]
    return found


def _table(ladder: Ladder, score: str) -> Table:
    rivals = _rivals(ladder)
    rows = [
        (
            cell.label,
            _less(cell, [start_of(cell)]),
            *(_less(cell, others) for others in rivals.values()),
            _on_own_rows(cell, score),
            ", ".join(map(str, cell.runs)),
        )
        for cell in ladder.cells
        if _is_shown(cell)
    ]
    over = [f"over {name}" for name in rivals]
    return Table(("method", "over its start", *over, "own rows", "seeds"), rows)


def _is_shown(cell: Cell) -> bool:
    return bool(cell.runs) and (learns(cell) or cell.method == "in_context")


def _rivals(ladder: Ladder) -> Mapping[str, list[Cell]]:
    """Returns the cells of which the best one is compared with methods, by name."""
    cells = {
        "one client alone": controls(ladder, "one_client"),
        "LoRA in one place": controls(ladder, "central"),
        "the best manual prompt": best_prompts(ladder)[0],
    }
    kept = {name: [cell for cell in found if on_all_rows(cell)] for name, found in cells.items()}
    return {name: found for name, found in kept.items() if found}


def _less(cell: Cell, others: Sequence[Cell]) -> str:
    """Returns a cell's score less that of the best other one as text; "" if it is that one."""
    own = scores_of(cell)
    best = best_of("the best one", others, seeds=own)
    if best.chosen == (cell.label,) or not on_all_rows(cell):
        return ""
    if best.lacking:
        return f"missing: {best.lacking}"
    return points([own[s] - score for s, score in best.scores.items()]).partition(" points")[0]


def _scored(cell: Cell, score: str) -> Cell:
    """Returns a cell by another score of its summaries."""
    value = lambda run, name: (run.summary.get(name) or {}).get(score)
    by: dict[int, Run] = {
        seed: run._replace(
            right=None if run.right is None else value(run, cell.score), base=value(run, "base")
        )
        for seed, run in cell.runs.items()
    }
    return cell._replace(runs=by)


def _on_own_rows(cell: Cell, score: str) -> str:
    """Returns the mean over clients on their own rows, as text; "" without models of their own."""
    tables = [(run.summary.get("clients") or {}).get("personal") for run in cell.runs.values()]
    means = [
        table["scores"][score]["mean_by_clients"]
        for table in tables
        if table and table.get("rows") == "own" and score in table["scores"]
    ]
    return percent(interval(means)) if means else ""
