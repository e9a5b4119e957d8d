"""Contrasts of drills: what a fault of a host costs, less what its like costs an open method.

Faults are paired by what happens, and by what may be done about it. The mean over a list of drills
would follow from the list, since most faults of a host cost some methods nothing whatever the data
are.

| what happens | to a closed model | to open weights |
| --- | --- | --- |
| other weights take its place, and nothing is trained | changed, at once | base_update, at once |
| the same, and all is trained again, as long as at first | base_retired | base_renewed |
| some clients get it no longer | refused, rate_limited | withdrawn |
| some lack the means | excluded_price | excluded_memory |
| some are barred by terms | excluded_region, excluded_licence | excluded_weights_licence |

Closed methods are used in two ways: a host is asked, or it trains its model on rows that are sent
there. Each way has a contrast of its own, with the best method that was drilled of it, since one
method is not all of them, and a mean over methods would follow from their list too.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from fedjax_post.report.position.contrasts import Contrast
from fedjax_post.report.position.controls import is_silent
from fedjax_post.report.position.drills import (
    drill_of,
    is_known_at_once,
    is_measured,
    losses,
    losses_at_once,
    rows_of,
)
from fedjax_post.report.position.ladder import Ladder
from fedjax_post.report.position.rules import numbers
from fedjax_post.report.position.thresholds import MARGIN


class Pair(NamedTuple):
    """A fault of a host, and its like of open weights."""

    ours: str
    theirs: str
    at_once: bool = False  # whether the loss is that before anything is trained


Pairs = Sequence[Pair]

CHANGES: Pairs = (
    Pair("changed", "base_update", at_once=True),
    Pair("base_retired", "base_renewed"),
    Pair("refused", "withdrawn"),
    Pair("rate_limited", "withdrawn"),
)
EXCLUSIONS: Pairs = (
    Pair("excluded_price", "excluded_memory"),
    Pair("excluded_region", "excluded_weights_licence"),
    Pair("excluded_licence", "excluded_weights_licence"),
)
UNHURT = f"no fault cost either side {100 * MARGIN.value:.0f} points"


class _Best(NamedTuple):
    """The losses of the best of some methods, which may be another one for each seed."""

    losses: list[float]
    at_once: list[float]  # the same before anything is trained
    methods: str  # those that were the best, for people


def contrasts(ladder: Ladder, pairs: Pairs, *, least: float) -> list[Contrast]:
    """Returns a contrast for each way of use and pair of drills that was measured on both sides.

    If no fault costs any of the compared methods the margin, at once or in the end, they show
    nothing of equality: they were too weak, or the task too easy.

    Args:
      ladder: with its drills.
      pairs: of drills.
      least: one held-out row, as a share.
    """
    found, any_hurt = [], False
    for pair, tuned in product(pairs, (False, True)):
        closed = measured(ladder, "closed", {pair.ours}, tuned=tuned)
        held = measured(ladder, "open", {pair.theirs})
        ours, theirs = (_best(rows, pair) for rows in (closed, held))
        gap = [a - b for a, b in zip(ours.losses, theirs.losses, strict=False)]
        if not gap:
            continue
        when = "loss at once" if pair.at_once else "loss"
        sides = f"{pair.ours} ({ours.methods}) less that by {pair.theirs} ({theirs.methods})"
        name = f"{when} by {sides}"
        if pair.at_once and not all(map(is_known_at_once, [*closed, *held])):
            name += ", in the end where it was not recorded at once"
        any_hurt = any_hurt or _is_hurt(ours) or _is_hurt(theirs)
        found.append(Contrast(name, gap, least))
    return found if any_hurt else [one._replace(below=None) for one in found]


def _is_hurt(side: _Best) -> bool:
    """Returns whether a fault cost the margin in the mean over seeds, at once or in the end."""
    means = [sum(found) / len(found) for found in (side.losses, side.at_once)]
    return max(means) >= MARGIN.value


def not_drilled(ladder: Ladder, pairs: Pairs) -> list[str]:
    """Returns lines on pairs of drills that a way of use lacks, of the ways that are cells.

    That a fault costs a closed side nothing may be so by definition, as where a host refuses a
    client whose rows it has. A drill that can hit no open method, as a licence that bars nobody, is
    lacking: nothing was there to compare with.
    """
    found = []
    for tuned, way in {False: "methods that ask", True: "fine-tuning by the host"}.items():
        cells = [c for c in ladder.cells if c.kind == "closed" and c.runs and not is_silent(c)]
        if not any((cell.tier == "FINETUNE") == tuned for cell in cells):
            continue
        absent = [
            f"{pair.ours} with {pair.theirs}"
            for pair in pairs
            if not (
                measured(ladder, "closed", {pair.ours}, tuned=tuned)
                or _costs_nothing(ladder, pair.ours, tuned=tuned)
            )
            or not measured(ladder, "open", {pair.theirs})
        ]
        if absent:
            found.append(f"not drilled of {way}, or nobody could be hit: {', '.join(absent)}")
    return found


def _costs_nothing(ladder: Ladder, drill: str, *, tuned: bool) -> bool:
    """Returns whether a drill of a way of use was run, and cost nothing by definition."""
    rows = _drilled(ladder, "closed", {drill}, tuned=tuned)
    return any(losses(row) for row in rows) and not any(any(losses(row)) for row in rows)


def missing(ladder: Ladder, pairs: Pairs) -> str:
    """Returns which side of all pairs has no drill that was measured; "" if each has one."""
    if not measured(ladder, "open", {pair.theirs for pair in pairs}):
        return "no drill that can hurt an open method was run"
    if not measured(ladder, "closed", {pair.ours for pair in pairs}):
        return "no drill was run that leaves a closed-side method a score, and could cost it some"
    return ""


def measured(
    ladder: Ladder, kind: str, drills: set[str], *, tuned: bool | None = None
) -> list[Mapping[str, Any]]:
    """Returns the rows of some drills of the methods of a kind whose losses are measurements.

    Args are those of `_drilled`.
    """
    rows = _drilled(ladder, kind, drills, tuned=tuned)
    return [row for row in rows if is_measured(row, kind)]


def _drilled(
    ladder: Ladder, kind: str, drills: set[str], *, tuned: bool | None = None
) -> list[Mapping[str, Any]]:
    """Returns the rows of some drills of the methods of a kind, those that ask nobody left out.

    Args:
      ladder: with its drills.
      kind: open or closed.
      drills: by name.
      tuned: whether the methods are those whose host trains its model; None for all.
    """
    cells = [cell for cell in ladder.cells if cell.kind == kind and not is_silent(cell)]
    chosen = [cell for cell in cells if tuned in (None, cell.tier == "FINETUNE")]
    names = {name for cell in chosen for name in (cell.method, cell.label)}
    return [
        row for row in rows_of(ladder) if drill_of(row) in drills and row.get("method") in names
    ]


def _best(rows: Sequence[Mapping[str, Any]], pair: Pair) -> _Best:
    """Returns the losses of the method with the best score without the fault.

    It is chosen, for each seed, by the other seeds, as the score is a part of the loss; one seed
    alone chooses by itself.
    """
    early = [losses_at_once(row) for row in rows]
    lost = early if pair.at_once else [losses(row) for row in rows]
    num_seeds = min(map(len, [*lost, *early]), default=0)
    before = [numbers(row.get("before"))[:num_seeds] or [0.0] * num_seeds for row in rows]
    found, at_once, chosen = [], [], []
    for seed in range(num_seeds):
        rest = [sum(scores) - (scores[seed] if num_seeds > 1 else 0.0) for scores in before]
        chosen.append(rest.index(max(rest)))
        found.append(lost[chosen[-1]][seed])
        at_once.append(early[chosen[-1]][seed])
    methods = dict.fromkeys(str(rows[n].get("method")) for n in chosen)
    return _Best(found, at_once, ", ".join(methods))
