"""Draws utility against bytes, with one point for each algorithm."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_post.report.drawing import MARKERS, add_legend, colour, new_panels, save


def draw_comparison(rows: Sequence[Any], path: Path) -> bool:
    """Draws mean scores with intervals over the bytes sent in both directions.

    Returns whether there is a picture; there is none without a score that all rows have.

    Args:
      rows: `comparison.Row`s.
      path: of the picture.
    """
    from matplotlib.ticker import LogLocator

    titles = {"exact_match": "exact match, %", "accuracy": "accuracy, %", "loss": "nats per token"}
    names = [name for name in titles if all(name in row.scores for row in rows)]
    if not names:
        return False
    figure, plots = new_panels(len(names), height=3.8)
    for axes, name in zip(plots, names, strict=True):
        factor = 1 if name == "loss" else 100
        for number, row in enumerate(rows):
            score, sent = row.scores[name], (row.bytes_up.mean + row.bytes_down.mean) / 1e6
            half = 0 if math.isnan(score.half) else factor * score.half
            label = readable(row.label)
            style = {"color": colour(number, len(rows)), "fmt": MARKERS[number % len(MARKERS)]}
            axes.errorbar(sent, factor * score.mean, half, capsize=3, label=label, **style)
        axes.set(xscale="log", xlabel="sent, up and down, MB", ylabel=f"held out: {titles[name]}")
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure, *plots[0].get_legend_handles_labels())
    save(figure, path)
    return True


def readable(label: str) -> str:
    """Returns a readable label of an algorithm and its settings: `ffa_lora, client_lr 0.3`."""
    name, *own = re.split(r":(?=\w+=)", label)
    return ", ".join([name, *(part.replace("=", " ") for part in own)])
