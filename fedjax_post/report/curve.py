"""Draws the learning curve of a run."""

from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.report.records import Record, read_records, series

_BLUE, _ORANGE = "#2a6fbb", "#d9730d"


class Panel(NamedTuple):
    """One plot: its axis label, and the entries of the records that it shows."""

    label: str
    training: str | None  # entry with the clients' mean over a round
    heldout: str | None  # entry with the held-out score
    percent: bool = False


def panels_of(records: list[Record]) -> list[Panel]:
    """Returns the plots that a run's records allow; the trained quantity comes first.

    The training loss of preferences is per pair, and the value of the surrogate loss for rewards
    has no meaning by itself. Therefore neither shares an axis with the held-out loss, which is
    per token.
    """
    has = {name for record in records for name, value in record.items() if value is not None}
    nats = Panel("loss, nats per token", "loss", "eval_loss")
    panels = [nats]
    if "reward" in has:
        panels = [Panel("mean reward", "reward", None), nats._replace(training=None)]
    elif "accuracy" in has:
        panels = [Panel("loss, nats per pair", "loss", None), nats._replace(training=None)]
    panels += [
        Panel("pairs preferred, %", "accuracy", "eval_preference", percent=True),
        Panel("exact match, %", None, "eval_exact_match", percent=True),
        Panel("labels ranked first, %", None, "eval_accuracy", percent=True),
    ]
    return [panel for panel in panels if {panel.training, panel.heldout} & has]


def draw_curve(directory: str | Path, path: str | Path | None = None) -> Path:
    """Draws a run's training metrics and held-out scores by round, and returns the file's path.

    Args:
      directory: of the run; only its `records.jsonl` is read.
      path: of the picture; by default `learning_curve.png` in the directory.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_records(directory)
    path = Path(directory) / "learning_curve.png" if path is None else Path(path)
    panels = panels_of(records)
    figure = Figure(figsize=(4.4 * max(1, len(panels)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axes, panel in zip(plots, panels, strict=False):
        _draw(axes, panel, records)
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=110, format="png")
    aside.replace(path)
    return path


def _draw(axes: Any, panel: Panel, records: list[Record]) -> None:
    factor = 100 if panel.percent else 1
    sources = [(panel.training, "clients, training", _BLUE), (panel.heldout, "held out", _ORANGE)]
    for name, label, color in sources:
        if name is None:
            continue
        rounds, values = series(records, name)
        marker = "o-" if name == panel.heldout or len(rounds) == 1 else "-"
        scaled = [factor * value for value in values]
        axes.plot(rounds, scaled, marker, color=color, markersize=3, label=label)
    if panel.percent:
        axes.set_ylim(0, 100)
    axes.set(xlabel="round", ylabel=panel.label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
