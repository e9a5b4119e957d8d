"""Draws utility against bytes, with one point for each algorithm."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MARKERS = "osD^v<>ph*XP"
_FEW = 10  # number of colours that are easy to distinguish


def colour(number: int, count: int) -> tuple[float, float, float, float]:
    """Returns the colour of a method, RGBA in [0, 1]; all `count` colours are different."""
    from matplotlib import colormaps

    if count <= _FEW:
        return colormaps["tab10"](number)
    return colormaps["turbo"]((number + 0.5) / count)


def draw_comparison(rows: Sequence[Any], path: Path) -> Path:
    """Draws mean scores with intervals over the bytes sent in both directions; returns the path.

    Args:
      rows: `comparison.Row`s.
      path: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    titles = {"exact_match": "exact match, %", "accuracy": "accuracy, %", "loss": "nats per token"}
    names = [name for name in titles if all(name in row.scores for row in rows)]
    figure = Figure(figsize=(4.2 * len(names) + 2.4, _height(len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        factor = 1 if name == "loss" else 100
        for number, row in enumerate(rows):
            score, sent = row.scores[name], (row.bytes_up.mean + row.bytes_down.mean) / 1e6
            half = 0 if math.isnan(score.half) else factor * score.half
            label = _readable(row.label) if name == names[0] else None
            style = {"color": colour(number, len(rows)), "fmt": _MARKERS[number % len(_MARKERS)]}
            axes.errorbar(sent, factor * score.mean, half, capsize=3, label=label, **style)
        axes.set(xscale="log", xlabel="sent, up and down, MB", ylabel=f"held out: {titles[name]}")
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=110, format="png")
    aside.replace(path)
    return path


def _height(rows: int) -> float:
    """Returns the height in inches at which the legend has a line for each row."""
    return max(3.8, 0.8 + 0.21 * rows)


def _readable(label: str) -> str:
    """Returns a readable label of an algorithm and its settings: `ffa_lora, client_lr 0.3`."""
    name, *own = re.split(r":(?=\w+=)", label)
    return ", ".join([name, *(part.replace("=", " ") for part in own)])
