"""The same question asked of other stages: what is measured of them here, and what is defined.

| stage | what is measured |
| --- | --- |
| post-training | private tokens that the target's host sees, by the meter |
| evaluation | the same, of the questions that are scored |
| use | questions until the open side is cheaper, from the counts of this ladder |
| unlearning | the loss of score of a federation that is trained again without one client |
| pre-training | nothing here: it needs the weights, and no rival has them |
"""

from collections.abc import Callable, Sequence

from fedjax_post.report.comparison import Interval, interval
from fedjax_post.report.markup import Block, Prose, Table
from fedjax_post.report.position.drills import FORGOTTEN, losses
from fedjax_post.report.position.ladder import Cell, Ladder, Run, asks, of_kind, shown
from fedjax_post.report.position.rules import count, points

# What an hour of a client's machine costs, in the unit of the ladder's price: an assumption, as for
# two cores that are rented
HOUR = 0.05


def stages(ladder: Ladder) -> list[Block]:
    """Returns a table of stages against both sides."""
    asking = [cell for cell in of_kind(ladder, "closed") if asks(cell)]
    held = of_kind(ladder, "open")
    mean = lambda cells, value_fn: count(_over(cells, value_fn))
    training = count(_joined([found for cell in asking if (found := shown(cell))]))
    told = "measured: the mean over cells and seeds, by the meter"
    rows = [
        ("post-training: private tokens shown", training, "0", told),
        (
            "evaluation: private tokens shown",
            mean(asking, lambda run: _evaluated(run, "private_tokens")),
            mean(held, lambda run: _evaluated(run, "private_tokens")),
            told,
        ),
        (
            "use: private tokens of one question shown",
            mean(asking, _each_question),
            "0",
            "counted in evaluation; 0 by definition where clients hold the model",
        ),
        ("use: the open side has shown less after", "", *_less_shown(asking)),
        ("use: the open side has cost less after", "", *_break_even(asking, held)),
        ("use: the open side has taken less energy after", "", *_energy(asking, held)),
        (
            "unlearning one client",
            _forgotten(ladder, "closed"),
            _forgotten(ladder, "open"),
            "measured: the loss of score of training again without it. What a host has read stays "
            "with it, by definition",
        ),
        (
            "pre-training",
            "impossible",
            "possible",
            "by definition: it makes weights. Not run in this ladder; algorithm di_loco does it",
        ),
    ]
    return [
        Prose(
            f"Money assumes that an hour of a client's machine costs {HOUR:g} in the unit of the "
            "price, and that use takes as long for a token as training did. Energy is counted in "
            "tokens through the model, a backward pass as two, as if each took as much on both "
            "sides: a provider does not state its own."
        ),
        Table(("stage", "without the weights", "with the weights", "how it is known"), rows),
    ]


def break_even(fixed: tuple[float, float], each: tuple[float, float]) -> float | None:
    """Returns after how many uses the first side costs no more from then on; None if never.

    >>> break_even((10.0, 4.0), (0.5, 2.5))
    3.0

    Args:
      fixed: what training costs, of either side.
      each: what a use costs, of either side.
    """
    ahead, gained = fixed[0] - fixed[1], each[1] - each[0]
    if ahead <= 0 <= gained:
        return 0.0
    return ahead / gained if gained > 0 else None


def _less_shown(asking: Sequence[Cell]) -> tuple[str, str]:
    if not asking:
        return "missing", ""
    return "the first question", "by definition: it shows a host nothing, in training and in use"


def _break_even(asking: Sequence[Cell], held: Sequence[Cell]) -> tuple[str, str]:
    own, per_token = _over(held, _own_cost), _over(held, _cost_of_token)
    paid = _over(asking, lambda run: run.disclosure.get("cost"))
    each, tokens = _over(asking, _paid_each), _over(asking, _each_question)
    if own is None or per_token is None or paid is None or each is None or tokens is None:
        return "missing", ""
    used = per_token.mean * tokens.mean
    found = break_even((own.mean, paid.mean), (used, each.mean))
    told = (
        f"training {own.mean:.3g} against {paid.mean:.3g}, a question {used:.2g} against "
        f"{each.mean:.2g}"
    )
    return _told(found), told


def _energy(asking: Sequence[Cell], held: Sequence[Cell]) -> tuple[str, str]:
    fixed, each = (_means(held, asking, name=name) for name in ("model_tokens", "question_tokens"))
    if fixed is None or each is None:
        return "missing", ""
    told = (
        f"training {fixed[0]:,.0f} tokens against {fixed[1]:,.0f}, a question {each[0]:.1f} "
        f"against {each[1]:.1f}"
    )
    return _told(break_even(fixed, each)), told


def _means(*sides: Sequence[Cell], name: str) -> tuple[float, float] | None:
    """Returns the mean of a number of the summaries on each of two sides; None if one lacks it."""
    first, second = (_over(cells, lambda run: run.summary.get(name)) for cells in sides)
    return None if first is None or second is None else (first.mean, second.mean)


def _told(found: float | None) -> str:
    """Returns after how many questions costs are equal, as text."""
    if not found:
        return "never" if found is None else "the first question"
    return f"{found:,.0f} questions"


def _own_cost(run: Run) -> float | None:
    seconds = run.summary.get("train_seconds")
    return None if seconds is None else HOUR * seconds / 3600


def _cost_of_token(run: Run) -> float | None:
    cost, tokens = _own_cost(run), run.summary.get("model_tokens")
    return cost / tokens if cost is not None and tokens else None


def _evaluated(run: Run, name: str) -> float | None:
    return ((run.summary.get("disclosure") or {}).get("evaluation") or {}).get(name)


def _each_question(run: Run) -> float | None:
    tokens, queries = _evaluated(run, "private_tokens"), _evaluated(run, "queries")
    return tokens / queries if tokens is not None and queries else None


def _paid_each(run: Run) -> float | None:
    cost, queries = _evaluated(run, "cost"), _evaluated(run, "queries")
    return cost / queries if cost is not None and queries else None


def _forgotten(ladder: Ladder, kind: str) -> str:
    names = {name for cell in of_kind(ladder, kind) for name in (cell.method, cell.label)}
    rows = [
        row
        for row in ladder.facts.get("drills") or []
        if row.get("drill") == FORGOTTEN and row.get("method") in names
    ]
    told = [f"{row['method']} loses {points(losses(row))}" for row in rows]
    return "; ".join(told) or "missing"


def _over(cells: Sequence[Cell], value_fn: Callable[[Run], float | None]) -> Interval | None:
    """Returns the mean over all runs of some cells that have a value; None without any."""
    values = [value for cell in cells for run in cell.runs.values()
              if (value := value_fn(run)) is not None]  # fmt: skip
    return interval(values) if values else None


def _joined(found: Sequence[Interval]) -> Interval | None:
    return interval([one.mean for one in found]) if found else None
