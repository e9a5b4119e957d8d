"""What all pictures have in common: colours, markers, and files written completely or not at all.

The first colours are those of Okabe and Ito, which colour-blind readers can distinguish. Whatever
has a colour of its own also has a marker or a line style of its own.
"""

from pathlib import Path
from typing import Any

BLUE, ORANGE = "#0072B2", "#D55E00"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>pPX*hH8d"
LINES = ("-", "--", "-.", ":")


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


def save(figure: Any, path: Path, *, dpi: int = 110) -> Path:
    """Writes a figure as a PNG file, completely or not at all, and returns the file's path."""
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=dpi, format="png")
    aside.replace(path)
    return path
