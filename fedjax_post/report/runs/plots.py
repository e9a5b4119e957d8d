"""Pictures of a page about runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_post.report.comparison import rows_of
from fedjax_post.report.curve import Panel, draw_curves, panels_of
from fedjax_post.report.drawing import LINES, add_legend, colour, new_panels, save
from fedjax_post.report.runs.folders import Experiment
from fedjax_post.report.scatter import draw_comparison, readable
from fedjax_post.report.table import SCORES

TELEMETRY = (
    Panel("aggregation error", "aggregation_error", None),
    Panel("client drift", "client_drift", None),
    Panel("effective rank", "effective_rank", None),
)
EPSILON = (Panel("epsilon spent", "epsilon", None),)


def draw_learning(experiments: Sequence[Experiment], path: Path) -> bool:
    """Draws the learning curves of all experiments; returns whether there are any."""
    return _draw_panels(experiments, path, panels_of(_all_records(experiments)))


def draw_entries(experiments: Sequence[Experiment], path: Path, panels: Sequence[Panel]) -> bool:
    """Draws those panels that some record has entries for; returns whether there are any."""
    has = {name for record in _all_records(experiments) for name in record}
    return _draw_panels(experiments, path, [panel for panel in panels if panel.training in has])


def draw_utility(experiments: Sequence[Experiment], path: Path) -> bool:
    """Draws scores over bytes for experiments that send some; returns whether it did."""
    sends = [e for e in experiments if any(run.summary["bytes_up"] for run in e.ended.values())]
    return bool(sends) and draw_comparison(
        rows_of({one.label: one.scores() for one in sends}), path
    )


def draw_clients(experiments: Sequence[Experiment], path: Path, table: str) -> bool:
    """Draws how scores are spread over clients, all seeds together; returns whether there are any.

    Args:
      experiments: in order.
      path: of the picture.
      table: of the lines in `clients.jsonl`, such as "shared".
    """
    lines = {
        readable(e.label): [
            c for run in e.runs.values() for c in run.clients if c["table"] == table
        ]
        for e in experiments
    }
    names = [
        name
        for name in SCORES
        if any(line.get(name) is not None for own in lines.values() for line in own)
    ]
    if not names:
        return False
    figure, plots = new_panels(len(names))
    for axes, name in zip(plots, names, strict=True):
        for number, (label, own) in enumerate(lines.items()):
            values = [line[name] for line in own if line.get(name) is not None]
            style = {"color": colour(number, len(lines)), "linestyle": LINES[number % len(LINES)]}
            if values:
                factor = 1 if name == "loss" else 100
                axes.ecdf(factor * np.asarray(values), label=label, **style)
        unit = "" if name == "loss" else ", %"
        axes.set(
            xlabel=f"{SCORES[name]}{unit}", ylabel="share of clients at or below", ylim=(0, 1.02)
        )
        axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure, *plots[0].get_legend_handles_labels())
    save(figure, path)
    return True


def _draw_panels(experiments: Sequence[Experiment], path: Path, panels: Sequence[Panel]) -> bool:
    drawn = {readable(one.label): one.records for one in experiments if one.records}
    if drawn and panels:
        draw_curves(drawn, path, panels=panels)
    return bool(drawn and panels)


def _all_records(experiments: Sequence[Experiment]) -> list:
    return [record for one in experiments for records in one.records for record in records]
