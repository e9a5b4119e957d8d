"""Tables of what the cells of a ladder spent, against its budget, and of the search of settings."""

from collections.abc import Mapping
from typing import Any

from fedjax_post.report.comparison import Interval
from fedjax_post.report.markup import Block, Prose, Table
from fedjax_post.report.position.controls import learns
from fedjax_post.report.position.ladder import (
    LONGER,
    Cell,
    Ladder,
    Run,
    accuracy,
    measure_of,
    over_seeds,
)
from fedjax_post.report.position.rules import count, percent
from fedjax_post.report.position.thresholds import BUDGET


def budget(ladder: Ladder) -> list[Block]:
    """Returns a table of each cell's score and what it spent, and the cells off the budget."""
    cells = [cell for cell in ladder.cells if cell.runs]
    if not cells:
        return []
    times = (ladder.facts.get(LONGER) or {}).get("times")
    more = (f"at {times} times the budget",) if ladder.longer else ()
    head = ("method", measure_of(ladder), *more, "tokens through the model", "of the budget",
            "rows asked", "money", "minutes", "rounds", "client visits", "tokens read",
            "trained parameters", "last score on the way, at queries")  # fmt: skip
    rows = [_row(ladder, cell) for cell in cells]
    return [Prose(_told(ladder)), Table(head, rows)]


def off_budget(ladder: Ladder) -> list[Cell]:
    """Returns the cells that learn and whose spending differs from the budget too much.

    One client alone is none of them: it has the steps of the shared model, and its own rows only.
    """
    found = [c for c in ladder.cells if learns(c) and not _alone(c) and c.runs]
    shares = [(cell, share_of_budget(ladder, cell)) for cell in found]
    return [cell for cell, share in shares if share is not None and is_off(share)]


def spent_of(cell: Cell) -> Interval | None:
    """Returns the tokens through the model that training took, over the seeds.

    Where each client trains a model alone, they are those of one model.
    """

    def spent(run: Run) -> float | None:
        models = (run.summary.get("population") or {}).get("clients", 1) if _alone(cell) else 1
        tokens = run.summary.get("model_tokens")
        return None if tokens is None else tokens / models

    return over_seeds(cell, spent)


def is_off(share: float) -> bool:
    """Returns whether spending, as a share of the budget, differs from it beyond the tolerance."""
    return abs(share - 1) > BUDGET.value


def share_of_budget(ladder: Ladder, cell: Cell) -> float | None:
    """Returns the tokens through the model over the budget; None if either is not known."""
    spent, whole = spent_of(cell), ladder.facts.get("budget")
    return spent.mean / whole if spent is not None and whole else None


def searched(ladder: Ladder) -> list[Block]:
    """Returns a table of the search that chose settings, and the methods that had none."""
    found: Mapping[str, Any] = ladder.facts.get("search") or {}
    cells = found.get("cells") or {}
    label = {cell.method: cell.label for cell in ladder.cells}
    without = [c.label for c in ladder.cells if learns(c) and c.method not in cells]
    if not cells:
        return [Prose("No settings were searched in this ladder: those of its file were used.")]
    rows = [
        (
            label.get(name, name),
            _setting(one["tried"][one["chosen"]]),
            percent(one["scores"][one["chosen"]]),
            "; ".join(
                f"{_setting(tried)}: {percent(score)}"
                for tried, score in zip(one["tried"], one["scores"], strict=True)
            ),
        )
        for name, one in cells.items()
    ]
    rest = f" Not searched: {', '.join(without)}." if without else ""
    return [
        Prose(
            f"{found['trials']} settings of each method were tried on seed {found['seed']}, which "
            f"is not reported; the best by {measure_of(ladder)} was taken.{rest}"
        ),
        Table(("method", "taken", measure_of(ladder), "all trials"), rows),
    ]


def _row(ladder: Ladder, cell: Cell) -> tuple[str, ...]:
    told = lambda name: count(over_seeds(cell, lambda run: run.summary.get(name)))
    share, cost = (
        share_of_budget(ladder, cell),
        over_seeds(cell, lambda r: r.disclosure.get("cost")),
    )
    mark = " (differs)" if cell in off_budget(ladder) else ""
    mark = " a model, in as many steps" if _alone(cell) else mark
    return (
        cell.label,
        percent(accuracy(cell)),
        *([_longer_told(ladder, cell)] if ladder.longer else []),
        count(spent_of(cell)),
        "" if share is None else f"{share:.2f}{mark}",
        count(over_seeds(cell, lambda run: run.spent["queries"])),
        "missing" if cost is None else f"{cost.mean:.4g}",
        _minutes(cell),
        *(told(name) for name in ("rounds", "visits", "tokens", "trained_parameters")),
        _curve_told(cell),
    )


def _longer_told(ladder: Ladder, cell: Cell) -> str:
    """Returns the score of a cell's longer runs, and by how much more they spent."""
    longer = ladder.longer.get(cell.method)
    if longer is None:
        return "not run"
    before, after = spent_of(cell), spent_of(longer)
    if before is None or after is None or not before.mean:
        return percent(accuracy(longer))
    return f"{percent(accuracy(longer))}, {after.mean / before.mean:.1f} times the tokens"


def _told(ladder: Ladder) -> str:
    unit = (
        "Tokens through the model count each forward pass over a token in training, and a backward "
        "pass as two; the model is the target, or the proxy or stand-in that is trained in its "
        "place. Scoring is not counted."
    )
    whole = ladder.facts.get("budget")
    if not whole:
        return f"{unit} No budget was stated, so that spending differs between the cells."
    off = [cell.label for cell in off_budget(ladder)]
    which = f"these differ: {', '.join(off)}" if off else "none differs"
    return (
        f"{unit} The budget of each cell is {whole:,}; of the cells that learn and spent "
        f"{100 * BUDGET.value:.0f} % more or less, {which}."
    )


def _setting(tried: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in tried.items())


def _minutes(cell: Cell) -> str:
    found = over_seeds(cell, lambda run: run.summary.get("train_seconds"))
    return "missing" if found is None else f"{found.mean / 60:.1f}"


def _curve_told(cell: Cell) -> str:
    ends = [run.curve[-1] for run in cell.runs.values() if run.curve]
    if not ends:
        return "missing"
    mean = lambda values: sum(values) / len(values)
    return f"{percent(mean([e.right for e in ends]))} at {mean([e.queries for e in ends]):,.0f}"


def _alone(cell: Cell) -> bool:
    return cell.control == "one_client"
