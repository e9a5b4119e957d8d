"""Draws utility against bytes, with one point for each algorithm."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_post.report.drawing import MARKERS, colour, new_figure, save


def draw_comparison(rows: Sequence[Any], path: Path) -> Path:
    """Draws mean scores with intervals over the bytes sent in both directions; returns the path.

    Args:
      rows: `comparison.Row`s.
      path: of the picture.
    """
    from matplotlib.ticker import LogLocator

    titles = {"exact_match": "exact match, %", "accuracy": "accuracy, %", "loss": "nats per token"}
    names = [name for name in titles if all(name in row.scores for row in rows)]
    figure = new_figure(4.2 * len(names) + 2.4, _height(len(rows)))
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        factor = 1 if name == "loss" else 100
        for number, row in enumerate(rows):
            score, sent = row.scores[name], (row.bytes_up.mean + row.bytes_down.mean) / 1e6
            half = 0 if math.isnan(score.half) else factor * score.half
            label = readable(row.label) if name == names[0] else None
            style = {"color": colour(number, len(rows)), "fmt": MARKERS[number % len(MARKERS)]}
            axes.errorbar(sent, factor * score.mean, half, capsize=3, label=label, **style)
        axes.set(xscale="log", xlabel="sent, up and down, MB", ylabel=f"held out: {titles[name]}")
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return save(figure, path)


def _height(rows: int) -> float:
    """Returns the height in inches at which the legend has a line for each row."""
    return max(3.8, 0.8 + 0.21 * rows)


def readable(label: str) -> str:
    """Returns a readable label of an algorithm and its settings: `ffa_lora, client_lr 0.3`."""
    name, *own = re.split(r":(?=\w+=)", label)
    return ", ".join([name, *(part.replace("=", " ") for part in own)])
