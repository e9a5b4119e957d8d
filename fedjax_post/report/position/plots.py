"""Plots of a ladder: scores by access tier, queries, private tokens and bytes.

The colours are those of Okabe and Ito, which colour-blind readers can distinguish. Kinds and
methods also differ in their markers.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedjax_post.report.comparison import Interval
from fedjax_post.report.drawing import LINES, MARKERS, add_legend, new_figure, save
from fedjax_post.report.position.ladder import (
    TIERS,
    Cell,
    Ladder,
    Run,
    accuracy,
    measure_of,
    over_seeds,
    shown,
)
from fedjax_post.report.position.rules import best, gate, unreadable

_KINDS = {"open": ("#0072B2", "o"), "closed": ("#D55E00", "s"), "baseline": ("#555555", "D"),
          "control": ("#999999", "^")}  # fmt: skip
_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#0072B2")


def draw_tiers(ladder: Ladder, path: Path) -> bool:
    """Draws the score of every cell with its interval and its seeds, grouped by tier.

    Returns:
      Whether there was anything to draw.
    """
    cells = sorted(scored(ladder), key=lambda pair: (_tier(pair[0]), pair[1].mean))
    if not cells:
        return False
    places, tier_ends = _places([cell for cell, _ in cells])
    figure = new_figure(7.2, 1.3 + 0.34 * (places[-1] + 1))
    axes = figure.subplots()
    for (cell, found), y in zip(cells, places, strict=True):
        style = _style(ladder, cell)
        seeds = [100 * (run.right or 0.0) for run in cell.runs.values()]
        axes.plot(seeds, [y] * len(seeds), "|", color=style["color"], markersize=9, alpha=0.6)
        axes.errorbar(100 * found.mean, y, xerr=_half(found), **style)
    axes.set_yticks(places, [cell.label for cell, _ in cells])
    for tier, (first, last) in tier_ends.items():
        axes.axhline(last + 0.75, color="#cccccc", linewidth=0.8)
        where = axes.get_yaxis_transform()
        axes.text(1.01, (first + last) / 2, tier, transform=where, va="center", fontsize=8)
    axes.set(ylim=(places[-1] + 0.75, -0.75), xlim=(0, 102), xlabel=_title(ladder))
    _chance(ladder, axes.axvline)
    for kind in dict.fromkeys(cell.kind for cell, _ in cells):
        axes.plot([], [], _KINDS[kind][1], color=_KINDS[kind][0], label=kind)
    _finish(figure, [axes], path, columns=4)
    return True


def draw_queries(ladder: Ladder, path: Path) -> bool:
    """Draws scores over the rows sent to the target, for the methods that query it.

    Lines are means over the seeds at the scored rounds; the last point is the final score with
    its interval. A horizontal line shows the best method with access to the weights.

    Returns:
      Whether there was anything to draw.
    """
    figure = new_figure(7.2, 4.2)
    axes = figure.subplots()
    number = 0
    for cell, found in scored(ladder):
        asked = over_seeds(cell, lambda run: run.spent["queries"])
        if asked is None or not asked.mean > 0:
            continue
        colour, marker = _COLOURS[number % len(_COLOURS)], MARKERS[number % len(MARKERS)]
        axes.plot(*mean_curve(cell), LINES[number % len(LINES)], color=colour, alpha=0.7)
        number += 1
        style = _style(ladder, cell) | {"fmt": marker, "color": colour, "label": cell.label}
        axes.errorbar(asked.mean, 100 * found.mean, yerr=_half(found), **style)
    if number == 0:
        return False
    top = best(cell for cell in ladder.cells if cell.kind == "open")
    height = accuracy(top) if top else None
    if top and height:
        label = f"{top.label}, with the weights: asks nobody"
        axes.axhline(100 * height.mean, color="#0072B2", linestyle="--", label=label)
    _chance(ladder, axes.axhline)
    axes.set(xscale="log", xlabel="rows asked of the target, all clients and rounds")
    axes.set(ylabel=_title(ladder), ylim=(0, 102))
    _finish(figure, [axes], path, columns=2)
    return True


def draw_costs(ladder: Ladder, path: Path) -> bool:
    """Draws scores over the private tokens that the target's host sees, and over bytes.

    Returns:
      Whether there was anything to draw.
    """
    cells = scored(ladder)
    if not cells:
        return False
    figure = new_figure(7.2, 4.6)
    both = figure.subplots(1, 2, sharey=True)
    for axes, cost_fn, title in zip(both, (shown, _bytes), _COST_TITLES, strict=True):
        spent = []
        for number, (cell, found) in enumerate(cells):
            style = _style(ladder, cell) | {"fmt": MARKERS[number % len(MARKERS)]}
            cost = cost_fn(cell)
            if cost is not None:
                spent.append(cost.mean)
                axes.errorbar(cost.mean, 100 * found.mean, yerr=_half(found), **style)
            if axes is both[0]:
                axes.plot([], [], style["fmt"], color=style["color"], label=cell.label)
        _logarithmic(axes, spent)
        _chance(ladder, axes.axhline, label=False)
        axes.set(xlabel=title)
    both[0].set(ylabel=_title(ladder), ylim=(0, 102))
    _finish(figure, both, path, columns=3)
    return True


def mean_curve(cell: Cell) -> tuple[list[float], list[float]]:
    """Returns mean queries and mean scores in %, at the scored rounds."""
    curves = [run.curve for run in cell.runs.values()]
    if len({len(curve) for curve in curves}) != 1:
        return [], []
    mean = lambda values: sum(values) / len(values)
    rounds = list(zip(*curves, strict=True))
    queries = [mean([point.queries for point in seeds]) for seeds in rounds]
    return queries, [100 * mean([point.right for point in seeds]) for seeds in rounds]


def scored(ladder: Ladder) -> list[tuple[Cell, Interval]]:
    """Returns the cells that have a score for every seed, with its interval."""
    found = [(cell, accuracy(cell)) for cell in ladder.cells]
    return [(cell, score) for cell, score in found if score is not None]


_COST_TITLES = (
    "private tokens shown to whoever hosts\nthe target, where a provider does",
    "bytes on the wire, up and down",
)


def _bytes(cell: Cell) -> Interval | None:
    def both_ways(run: Run) -> float | None:
        up, down = run.bytes_up, run.bytes_down
        return None if up is None or down is None else up + down

    return over_seeds(cell, both_ways)


def _style(ladder: Ladder, cell: Cell) -> dict[str, Any]:
    """Returns the style of a cell's marker: hollow if its score cannot be interpreted."""
    colour, marker = _KINDS[cell.kind]
    style = {"fmt": marker, "color": colour, "markersize": 7, "capsize": 4}
    unread = cell.kind == "closed" and unreadable(gate(ladder))
    return style | ({"markerfacecolor": "white"} if unread else {})


def _places(cells: Sequence[Cell]) -> tuple[list[float], dict[str, tuple[float, float]]]:
    """Returns the heights of cells, with gaps between tiers, and the range of each tier."""
    places: list[float] = []
    ends: dict[str, tuple[float, float]] = {}
    for number, cell in enumerate(cells):
        gap = 0.5 * (len(ends) - (cell.tier in ends))
        places.append(number + gap)
        ends[cell.tier] = (ends.get(cell.tier, (places[-1], 0))[0], places[-1])
    return places, ends


def _title(ladder: Ladder) -> str:
    return f"{measure_of(ladder)}, held out, %"


def _tier(cell: Cell) -> int:
    return TIERS.index(cell.tier) if cell.tier in TIERS else len(TIERS)


def _chance(ladder: Ladder, draw_fn: Callable[..., Any], *, label: bool = True) -> None:
    chance = ladder.facts.get("chance")
    if chance is not None:
        named = {"label": f"chance, {100 * chance:.1f} %"} if label else {}
        draw_fn(100 * chance, color="#555555", linestyle=":", **named)


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Makes the axis logarithmic, with a place for 0 if there is a 0 among the values."""
    above = [value for value in values if value > 0]
    if above and len(above) == len(values):
        axes.set_xscale("log")
    elif above:
        first, last = (math.floor(math.log10(f(above))) for f in (min, max))
        axes.set_xscale("symlog", linthresh=10.0**first, linscale=0.6)
        axes.set_xlim(left=-0.3 * 10**first)
        decades = range(first, last + 1, max(1, (last - first) // 4))
        axes.set_xticks([0, *(10.0**decade for decade in decades)])
        axes.minorticks_off()


def _half(found: Interval) -> float:
    return 0.0 if math.isnan(found.half) else 100 * found.half


def _finish(figure: Any, every: Sequence[Any], path: Path, *, columns: int) -> None:
    """Adds the legend, and writes the picture, completely or not at all."""
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure, *every[0].get_legend_handles_labels(), most=columns)
    save(figure, path, dpi=130)
