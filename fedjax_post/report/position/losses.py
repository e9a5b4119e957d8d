"""Contrasts of drills: what a fault of a host costs, less what its like costs an open method.

Faults are paired by what happens. The mean over a list of drills would follow from the list, since
most faults of a host cost some methods nothing whatever the data are.

| what happens | to a closed model | to open weights |
| --- | --- | --- |
| other weights take its place | changed, base_retired | base_update |
| some clients get it no longer | refused, rate_limited | withdrawn |
| some lack the means | excluded_price | excluded_memory |
| some are barred by terms | excluded_region, excluded_licence | excluded_weights_licence |
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from fedjax_post.report.position.contrasts import Contrast
from fedjax_post.report.position.drills import (
    bites,
    drill_of,
    is_measured,
    mean_losses,
    rows_of,
)
from fedjax_post.report.position.ladder import Ladder
from fedjax_post.report.position.thresholds import MARGIN

Pairs = Sequence[tuple[str, str]]  # a fault of a host, and its like of open weights

CHANGES: Pairs = (
    *product(("changed", "base_retired"), ("base_update",)),
    *product(("refused", "rate_limited"), ("withdrawn",)),
)
EXCLUSIONS: Pairs = (
    ("excluded_price", "excluded_memory"),
    *product(("excluded_region", "excluded_licence"), ("excluded_weights_licence",)),
)
UNHURT = f"no fault cost either side {100 * MARGIN.value:.0f} points"


def contrasts(ladder: Ladder, pairs: Pairs, *, least: float) -> list[Contrast]:
    """Returns a contrast for each pair of drills that was measured on both sides.

    A fault that costs neither side the margin shows nothing of equality: it was too weak, or the
    task too easy.

    Args:
      ladder: with its drills.
      pairs: of drills.
      least: one held-out row, as a share.
    """
    found = []
    for ours, theirs in pairs:
        closed, held = (measured(ladder, kind, {name}) for kind, name in
                        (("closed", ours), ("open", theirs)))  # fmt: skip
        gap = [a - b for a, b in zip(mean_losses(closed), mean_losses(held), strict=False)]
        if not gap:
            continue
        name = f"loss by {ours} ({_methods(closed)}) less that by {theirs} ({_methods(held)})"
        below = MARGIN.value if any(map(bites, [*closed, *held])) else None
        found.append(Contrast(name, gap, least, below=below))
    return found


def missing(ladder: Ladder, pairs: Pairs) -> str:
    """Returns which side of all pairs has no drill that was measured; "" if each has one."""
    if not measured(ladder, "open", {theirs for _, theirs in pairs}):
        return "no drill that can hurt an open method was run"
    if not measured(ladder, "closed", {ours for ours, _ in pairs}):
        return "no drill was run that leaves a closed-side method a score, and could cost it some"
    return ""


def measured(ladder: Ladder, kind: str, drills: set[str]) -> list[Mapping[str, Any]]:
    """Returns the rows of some drills of the methods of a kind whose losses are measurements."""
    cells = [cell for cell in ladder.cells if cell.kind == kind]
    names = {name for cell in cells for name in (cell.method, cell.label)}
    return [
        row
        for row in rows_of(ladder)
        if drill_of(row) in drills and row.get("method") in names and is_measured(row, kind)
    ]


def _methods(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(str(row.get("method")) for row in rows)
