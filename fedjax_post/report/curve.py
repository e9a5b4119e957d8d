"""Draws learning curves: of one run, or of experiments with several seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.report.comparison import interval
from fedjax_post.report.drawing import BLUE, MARKERS, ORANGE, add_legend, colour, new_panels, save
from fedjax_post.report.records import Record, read_records, series


class Panel(NamedTuple):
    """One plot: its axis label, and the entries of the records that it shows."""

    label: str
    training: str | None  # entry with the clients' mean over a round
    heldout: str | None  # entry with the held-out score
    percent: bool = False


def panels_of(records: list[Record]) -> list[Panel]:
    """Returns the plots that a run's records allow; the trained quantity comes first.

    The training loss of preferences is per pair, that of questions to a model is per question, and
    the value of the surrogate loss for rewards has no meaning by itself. Therefore none of them
    shares an axis with the held-out loss, which is per token.
    """
    has = {name for record in records for name, value in record.items() if value is not None}
    nats = Panel("loss, nats per token", "loss", "eval_loss")
    panels, pairs = [nats], Panel("pairs preferred, %", None, "eval_preference", percent=True)
    if "reward" in has:
        panels = [Panel("mean reward", "reward", None), nats._replace(training=None)]
    elif {"margin", "eval_preference"} & has:
        panels = [Panel("loss, nats per pair", "loss", None), nats._replace(training=None)]
        pairs = pairs._replace(training="accuracy")
    elif "queries" in has:
        panels = [Panel("loss per question", "loss", None), nats._replace(training=None)]
        panels += [Panel("questions right, %", "accuracy", None, percent=True)]
    panels += [
        pairs,
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
    records = read_records(directory)
    path = Path(directory) / "learning_curve.png" if path is None else Path(path)
    return draw_curves({"": [records]}, path, panels=panels_of(records))


def draw_curves(
    experiments: Mapping[str, Sequence[list[Record]]], path: Path, *, panels: Sequence[Panel]
) -> Path:
    """Draws entries of records by round, one plot a panel; returns the path of the picture.

    Lines are means over the seeds, at the rounds that all seeds have, with bands of 95 %. What is
    held out is solid with markers. Of one experiment, training and held out differ in colour; of
    several, each has a colour and a marker, and training is dashed.

    Args:
      experiments: the records of each seed, by label.
      path: of the picture.
      panels: of the picture.
    """
    figure, plots = new_panels(max(1, len(panels)))
    for axes, panel in zip(plots, panels, strict=False):
        for number, seeds in enumerate(experiments.values()):
            own = None
            if len(experiments) > 1:
                own = colour(number, len(experiments)), MARKERS[number % len(MARKERS)]
            _draw(axes, panel, seeds, own=own)
        if panel.percent:
            axes.set_ylim(0, 100)
        axes.set(xlabel="round", ylabel=panel.label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        if len(experiments) == 1:
            axes.legend(frameon=False)
    if len(experiments) > 1:
        _name_experiments(figure, list(experiments))
    return save(figure, path)


def mean_series(
    seeds: Sequence[list[Record]], name: str
) -> tuple[list[int], list[float], list[float]]:
    """Returns rounds that all seeds have, and an entry's mean and half interval at each.

    Args:
      seeds: the records of each seed.
      name: of the entry. The half intervals of a single seed are nan.

    >>> mean_series([[{"round": 0, "loss": 2.0}], [{"round": 0, "loss": 4.0}]], "loss")[:2]
    ([1], [3.0])
    """
    found = [dict(zip(*series(records, name), strict=True)) for records in seeds]
    rounds = sorted(set.intersection(*map(set, found))) if found else []
    each = [interval([values[number] for values in found]) for number in rounds]
    return rounds, [one.mean for one in each], [one.half for one in each]


def _draw(axes: Any, panel: Panel, seeds: Sequence[list[Record]], *, own: Any) -> None:
    """Draws one experiment's lines; `own` is its colour and marker where there are several."""
    factor = 100 if panel.percent else 1
    sources = [(panel.training, "clients, training", BLUE), (panel.heldout, "held out", ORANGE)]
    both = panel.training is not None and panel.heldout is not None
    for name, label, shade in sources:
        rounds, means, halves = mean_series(seeds, name) if name else ([], [], [])
        if not rounds:
            continue
        style: dict[str, Any] = {"color": shade, "label": label, "marker": "o", "markersize": 3}
        if own is not None:
            style |= {"color": own[0], "label": None, "marker": own[1], "markersize": 4}
        if name == panel.training and len(rounds) > 1:
            every = max(1, len(rounds) // 8)
            style |= {"markevery": every} if own and not both else {"marker": ""}
            style |= {"linestyle": "--", "linewidth": 1} if own and both else {}
        low, high = (
            [factor * (mean + sign * half) for mean, half in zip(means, halves, strict=True)]
            for sign in (-1, 1)
        )
        axes.plot(rounds, [factor * mean for mean in means], **style)
        if not math.isnan(halves[0]):
            axes.fill_between(rounds, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _name_experiments(figure: Any, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(i, len(labels)), marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(labels)
    ]
    add_legend(figure, handles, labels)
