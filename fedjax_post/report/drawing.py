"""What all pictures have in common: colours, markers, and files written completely or not at all.

The first colours are those of Okabe and Ito, which colour-blind readers can distinguish. Whatever
has a colour of its own also has a marker or a line style of its own.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>pPX*hH8d"
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xx", "\\\\\\")  # of areas, for print without colours
_ROW = 0.2  # inches that a line of a legend takes


def colour(number: int, count: int) -> Any:
    """Returns the colour of one of `count` things; all their colours are different."""
    from matplotlib import colormaps

    if count <= len(COLOURS):
        return COLOURS[number]
    return colormaps["viridis"](number / (count - 1))


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure that needs no display; sizes are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_panels(count: int, *, width: float = 4.4, height: float = 3.4) -> tuple[Any, list[Any]]:
    """Returns a figure and its plots, two in a row, so that text stays readable on a page.

    Args:
      count: number of plots, at least 1.
      width: of one plot, inches.
      height: of one plot, inches.
    """
    rows, columns = math.ceil(count / 2), min(count, 2)
    figure = new_figure(width * columns, height * rows)
    plots = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in plots[count:]:
        spare.set_visible(False)
    return figure, plots[:count]


def add_legend(figure: Any, handles: Sequence[Any], labels: Sequence[str], *, most: int = 3) -> Any:
    """Adds a legend above the plots and returns it; the figure becomes taller by its lines.

    It has as many columns, up to `most`, as the width of the figure has room for. Labels that are
    wider than the figure are broken.

    Args:
      figure: without a legend.
      handles: of the things that are drawn.
      labels: their names.
      most: number of columns.
    """
    letters = int(figure.get_figwidth() * 12)  # of small text, without the handle
    texts = [fill(label, letters) for label in labels]
    style = {"loc": "outside upper left", "frameon": False, "fontsize": "small"}
    for columns in range(min(most, len(texts)), 0, -1):
        legend = figure.legend(handles, texts, ncols=columns, **style)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    lines = sum(text.count("\n") + 1 for text in texts)
    figure.set_figheight(figure.get_figheight() + _ROW * math.ceil(lines / columns))
    return legend


def save(figure: Any, path: Path, *, dpi: int = 110) -> Path:
    """Writes a figure as a PNG file, completely or not at all, and returns the file's path."""
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=dpi, format="png")
    aside.replace(path)
    return path
