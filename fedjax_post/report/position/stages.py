"""The same question asked of other stages: what is measured of them here, and what is defined.

What each capability allows is in `capabilities`; what the sides cost is here, for the best method
of each:

| costs | what is measured |
| --- | --- |
| questions shown | nothing: the open side shows none, by definition |
| money, energy | questions until the open side is cheaper |
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from fedjax_post.report.markup import Block, Bullets, Prose, Table
from fedjax_post.report.position.capabilities import by_capability
from fedjax_post.report.position.controls import is_silent
from fedjax_post.report.position.ladder import (
    Cell,
    Ladder,
    Run,
    asks,
    comparable,
    evaluated,
    measure_of,
    of_kind,
    over_seeds,
)
from fedjax_post.report.position.rules import best
from fedjax_post.report.position.thresholds import BUDGET

# What an hour of a client's machine costs, in the unit of the ladder's price: an assumption, as for
# two cores that are rented
HOUR = 0.05
TOLERANCE = 0.01  # costs that differ by less than this share of the larger one count as equal
_UNPAIRED = "no open method, or no closed one that asks in training, has a score"

_ValueFn = Callable[[Run], float | None]


class _Pair(NamedTuple):
    """The methods whose costs are compared: the best of each side, by mean score."""

    held: Cell  # open
    asking: Cell  # closed


class _Costs(NamedTuple):
    """What a pair of methods costs in one unit, the open one first; means over the seeds."""

    training: tuple[float, float]
    use: tuple[float, float]  # of one question


def stages(ladder: Ladder) -> list[Block]:
    """Returns the tables of stages and of costs, and how both are counted."""
    pair = _pair(ladder)
    asking = any(asks(cell) and not is_silent(cell) for cell in of_kind(ladder, "closed"))
    less = "by definition: it shows a host nothing, in training and in use"
    rows = [
        ("has shown less", *(("the first question", less) if asking else ("missing", ""))),
        ("has cost less money", *_money(pair)),
        ("has taken less energy", *_energy(pair)),
    ]
    return [
        *by_capability(ladder),
        Prose("What the sides cost, in training and in use together:"),
        Table(("the open side", "after", "how it is known"), rows),
        Prose("How costs are counted:"),
        Bullets(_conventions(ladder)),
    ]


def break_even(
    fixed: tuple[float, float], each: tuple[float, float], *, tolerance: float = TOLERANCE
) -> float | None:
    """Returns after how many uses the first side costs no more from then on; None if never.

    If a use costs both sides the same, only training can make the first side cheaper: it then is
    from the first use on, or never.

    >>> break_even((10.0, 4.0), (0.5, 2.5))
    3.0
    >>> break_even((3.0, 4.0), (2.49, 2.5))
    0.0
    >>> break_even((10.0, 4.0), (2.49, 2.5))  # without the tolerance: 600 uses

    Args:
      fixed: what training costs, of either side, at least 0.
      each: what a use costs, of either side, at least 0 and in the same unit.
      tolerance: a difference below this share of the larger cost counts as none, in [0, 1].
    """
    saved = _difference(each[1], each[0], tolerance)
    if saved == 0:
        return 0.0 if _difference(fixed[0], fixed[1], tolerance) < 0 else None
    return None if saved < 0 else max(0.0, (fixed[0] - fixed[1]) / saved)


def _difference(first: float, second: float, tolerance: float) -> float:
    """Returns the first cost less the second; 0 if it is below a share of the larger one."""
    found = first - second
    return 0.0 if abs(found) < tolerance * max(first, second) else found


def _conventions(ladder: Ladder) -> list[str]:
    """Returns what the costs of the table rest on, beside the measurements."""
    whole = ladder.facts.get("budget")
    budget = (
        f"The ladder set the training of all methods to one budget, {whole:,} tokens through the "
        f"model, and lets it differ by {100 * BUDGET.value:.0f} %: what training costs more or "
        "less within that follows from whole rounds and epochs, and is no finding on either side."
        if whole
        else "No budget was stated, so that training took what each method's settings ask for."
    )
    return [
        f"Money and energy compare one method of each side, that with the best mean "
        f"{measure_of(ladder)}, and the first in the ladder among equals. A closed method that "
        "asks its host nothing in training is left out, since no bill contains what its clients "
        "train themselves.",
        f"What a use costs counts as the same if it differs by less than {100 * TOLERANCE:.0f} %.",
        budget,
        f"Money: an hour of a client's machine is assumed to cost {HOUR:g} in the unit of the "
        "price, and a token in use to take as long as one in training. The closed side costs what "
        "its host billed, in training and for each question of the evaluation, without what its "
        "clients compute themselves. A bill counts a token that the host trains on once, and the "
        "budget counts it three times: what a host that trains costs follows in part from this "
        "convention.",
        "Energy: counted in tokens through the model, a backward pass as two, as if each took as "
        "much on both sides. A provider does not state its own.",
    ]


def _pair(ladder: Ladder) -> _Pair | None:
    """Returns the best open method and the best closed one that asks in training, or None."""
    closed = [c for c in comparable(ladder, "closed") if asks(c) and not is_silent(c)]
    held, asking = best(comparable(ladder, "open")), best(closed)
    return None if held is None or asking is None else _Pair(held, asking)


def _money(pair: _Pair | None) -> tuple[str, str]:
    if pair is None:
        return "missing", _UNPAIRED
    billed_fn = lambda run: run.disclosure.get("cost")
    costs = _costs(pair, training=(_own_cost, billed_fn), use=(_own_use, _billed_use))
    if costs is None:
        return "missing", f"{_named(pair)}: a summary lacks what it cost"
    (own, billed), (own_use, billed_use) = costs
    return _after(costs), (
        f"{_named(pair)}: training {own:.3g} against {billed:.3g}, a million questions "
        f"{1e6 * own_use:.3g} against {1e6 * billed_use:.3g}{_tie_told(costs)}"
    )


def _energy(pair: _Pair | None) -> tuple[str, str]:
    if pair is None:
        return "missing", _UNPAIRED
    spent_fn = lambda run: run.summary.get("model_tokens")
    costs = _costs(pair, training=(spent_fn, spent_fn), use=(_tokens_of_use, _tokens_of_use))
    if costs is None:
        return "missing", f"{_named(pair)}: a summary lacks its tokens"
    (own, hosted), (own_use, hosted_use) = costs
    if not _difference(own, hosted, BUDGET.value):  # one budget, of whole rounds and epochs
        costs = costs._replace(training=(hosted, hosted))
    return _after(costs), (
        f"{_named(pair)}: training {own:,.0f} tokens against {hosted:,.0f}, a question "
        f"{own_use:.1f} against {hosted_use:.1f}{_tie_told(costs)}"
    )


def _named(pair: _Pair) -> str:
    return f"{pair.held.label} against {pair.asking.label}, the best of each side"


def _costs(
    pair: _Pair, *, training: tuple[_ValueFn, _ValueFn], use: tuple[_ValueFn, _ValueFn]
) -> _Costs | None:
    """Returns what a pair costs, given functions of a run; None if a run lacks a value."""
    found = [
        over_seeds(cell, value_fn)
        for value_fns in (training, use)
        for cell, value_fn in zip(pair, value_fns, strict=True)
    ]
    means = [one.mean for one in found if one is not None]
    return _Costs((means[0], means[1]), (means[2], means[3])) if len(means) == 4 else None


def _after(costs: _Costs) -> str:
    """Returns after how many questions the open side is cheaper, as text."""
    found = break_even(*costs)
    if found is not None:
        whole = math.ceil(round(found, 6))  # not one more for the sake of a rounding error
        return "the first question" if whole <= 1 else f"{whole:,} questions"
    return f"never: a use costs {'both sides the same' if _is_tie(costs) else 'the open side more'}"


def _tie_told(costs: _Costs) -> str:
    return "; a use costs the same, so that training alone decides" if _is_tie(costs) else ""


def _is_tie(costs: _Costs) -> bool:
    """Returns whether a use costs both sides the same, within the tolerance."""
    return _difference(*costs.use, TOLERANCE) == 0


def _own_cost(run: Run) -> float | None:
    seconds = run.summary.get("train_seconds")
    return None if seconds is None else HOUR * seconds / 3600


def _own_use(run: Run) -> float | None:
    """Returns what a question costs on a client's machine: its tokens, priced as in training."""
    cost, tokens, used = _own_cost(run), run.summary.get("model_tokens"), _tokens_of_use(run)
    return cost / tokens * used if cost is not None and used is not None and tokens else None


def _tokens_of_use(run: Run) -> float | None:
    """Returns the tokens through the model for one question: its template and prompt included."""
    return run.summary.get("question_tokens")


def _billed_use(run: Run) -> float | None:
    cost, queries = evaluated(run, "cost"), evaluated(run, "queries")
    return cost / queries if cost is not None and queries else None
