"""Stages against what a model opens: what was measured of each pair, and what is by definition.

| a cell | when |
| --- | --- |
| a number | measured: the mean over this capability's methods, with their range if they differ |
| by definition | it follows from what methods of this capability declare |
| not measured | no run of the ladder bears on it |
"""

from collections.abc import Callable, Sequence

from fedjax_post.report.markup import Block, Bullets, Prose, Table
from fedjax_post.report.position.drills import FORGOTTEN, losses
from fedjax_post.report.position.ladder import (
    COMPARED,
    TIERS,
    Cell,
    Ladder,
    Run,
    asks,
    comparable,
    evaluated,
    if_hosted,
    measure_of,
    of_kind,
    over_seeds,
)
from fedjax_post.report.position.rules import points

NONE, NOT_MEASURED = "0, by definition", "not measured"
_OWN = ("WEIGHTS", "GRADIENTS")  # with which clients hold the model
_ValueFn = Callable[[Run], float | None]


def by_capability(ladder: Ladder) -> list[Block]:
    """Returns the table of stages against capabilities, and how it is to be read."""
    found = [cell for kind in COMPARED for cell in of_kind(ladder, kind)]
    cells = {tier: [cell for cell in found if cell.tier == tier] for tier in TIERS}
    scored = {kind: comparable(ladder, kind) for kind in COMPARED}
    each = lambda fn: tuple(fn(cells[tier]) for tier in TIERS)
    score = lambda ones: _share([cell for cell in ones if cell in scored[cell.kind]])
    rows = [
        ("pre-training", *(_made(tier) for tier in TIERS)),
        ("post-training: methods that were run", *each(lambda ones: str(len(ones)))),
        (f"post-training: {measure_of(ladder)}, %", *each(score)),
        ("post-training: private tokens that a host sees", *each(_shown)),
        ("evaluation of all held-out rows: private tokens that a host sees", *each(_scored)),
        ("use: private tokens of a question that a host sees", *each(_used)),
        (
            "unlearning one client: points lost when all is trained again without it",
            *each(lambda ones: _forgotten(ladder, ones)),
        ),
    ]
    return [
        Table(("stage", *TIERS), rows),
        Prose("How the table is read:"),
        Bullets(
            [
                "A number is measured: the mean over the methods of a capability, each by its mean "
                "over seeds, with the range of the methods; how many of them had a value, where "
                "some had none. Baselines and controls are left out.",
                "Private tokens are those that the meter counted; a question of use is one of real "
                "uses where a run has any, or else of its evaluation. A method that asks its host "
                "nothing in training may ask it in evaluation and in use.",
                "By definition: pre-training makes the weights, and so needs them. Who holds a "
                "model asks nobody. What a host has read stays with it, whatever is trained again. "
                "Not measured: no run of this ladder bears on it; algorithm di_loco pre-trains.",
            ]
        ),
    ]


def _made(tier: str) -> str:
    """Returns whether a capability allows pre-training, which no ladder runs."""
    possible = "possible" if tier in _OWN else "impossible"
    return f"{possible}, by definition" + (f"; {NOT_MEASURED}" if tier in _OWN else "")


def _share(cells: Sequence[Cell]) -> str:
    return _mean(cells, lambda run: None if run.right is None else 100 * run.right, ".1f")


def _shown(cells: Sequence[Cell]) -> str:
    if cells and not any(map(asks, cells)):
        return NONE
    return _mean(cells, if_hosted)


def _scored(cells: Sequence[Cell]) -> str:
    # 0 of a model that is elsewhere is what a run says whose evaluation was not metered
    return _held(cells) or _mean(cells, lambda run: _tokens_of_scoring(run) or None)


def _used(cells: Sequence[Cell]) -> str:
    return _held(cells) or _mean(cells, _tokens_in_use, ".1f")


def _held(cells: Sequence[Cell]) -> str:
    """Returns that nothing is shown, where clients hold the model of all cells; else ""."""
    return NONE if cells and all(cell.kind == "open" for cell in cells) else ""


def _mean(cells: Sequence[Cell], value_fn: _ValueFn, form: str = ",.0f") -> str:
    """Returns the mean over cells as text, with their range if they differ."""
    values = [one.mean for cell in cells if (one := over_seeds(cell, value_fn))]
    if not values:
        return NOT_MEASURED
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    told = f"{sum(values) / len(values):{form}}" + (f" ({low} to {high})" if low != high else "")
    few = len(values) < len(cells)
    return told + (f", {len(values)} of {len(cells)} methods" if few else "")


def _forgotten(ladder: Ladder, cells: Sequence[Cell]) -> str:
    names = {name for cell in cells for name in (cell.method, cell.label)}
    rows = [
        row
        for row in ladder.facts.get("drills") or []
        if row.get("drill") == FORGOTTEN and row.get("method") in names
    ]
    return "; ".join(f"{points(losses(row))}, {row['method']}" for row in rows) or NOT_MEASURED


def _tokens_of_question(run: Run) -> float | None:
    """Returns the private tokens of one question, those of its template left out."""
    tokens, queries = evaluated(run, "private_tokens"), evaluated(run, "queries")
    return tokens / queries if tokens is not None and queries else None


def _tokens_in_use(run: Run) -> float | None:
    """Returns the private tokens of one question of a run's uses, or else of its evaluation."""
    queries = run.used.get("queries")
    return run.used["private_tokens"] / queries if queries else _tokens_of_question(run)


def _tokens_of_scoring(run: Run) -> float | None:
    """Returns the private tokens of the questions of all held-out rows; None if it is unknown."""
    tokens, rows = _tokens_of_question(run), run.summary.get("heldout_examples")
    return tokens * rows if tokens is not None and rows else None
