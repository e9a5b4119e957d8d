"""Comparison of algorithms over seeds: means, confidence intervals, a table and a plot.

Everything is read from run folders `<directory>/<algorithm>/seed-<seed>`: scores and settings from
`summary.json`, bytes on the wire from `records.jsonl`.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.integrity import DamagedError, seal_file
from fedjax_post.report.records import read_records, read_summary
from fedjax_post.report.scatter import draw_comparison
from fedjax_post.report.table import SCORES, format_bytes

_SCORES = tuple(name for name in SCORES if name != "preference")


class RunScores(NamedTuple):
    """The results of one run."""

    scores: dict[str, float]  # after the last round: loss in nats per token, exact match in [0, 1]
    bytes_up: int
    bytes_down: int
    seconds: float
    facts: dict[str, Any]  # algorithm, seed, commit, versions, ...


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % confidence interval."""

    mean: float
    half: float  # nan for a single seed


class Row(NamedTuple):
    """One algorithm of a comparison."""

    label: str
    seeds: list[int]
    scores: dict[str, Interval]
    ahead: dict[str, Interval]  # scores that both have, minus the first algorithm's, by seed
    bytes_up: Interval
    bytes_down: Interval


def read_run(directory: Path) -> RunScores:
    """Returns the results of a finished run; those of personal models if it scored them.

    Raises:
      DamagedError: for a summary or records that are damaged or not those of a run.
    """
    summary, records = read_summary(directory), read_records(directory)
    try:
        scored = summary.get("personal") or summary["final"]
        finite = lambda value: math.nan if value is None else float(value)  # null: not finite
        return RunScores(
            {name: finite(scored[name]) for name in _SCORES if name in scored},
            sum(int(record["bytes_up"]) for record in records),
            sum(int(record["bytes_down"]) for record in records),
            sum(record["seconds"] for record in records),
            {name: summary[name] for name in ("algorithm", "seed", "commit", "versions", "device")},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{directory} contains no run of this program ({error!r})") from None


def describe(run: RunScores) -> str:
    """Returns a run's results as one line of text; a model that only answers has no loss."""
    nats = [f"{run.scores['loss']:.3f} nats per token"] if "loss" in run.scores else []
    shares = [name for name in ("exact_match", "accuracy") if name in run.scores]
    told = ", ".join([*nats, *(f"{SCORES[name]} {run.scores[name]:.1%}" for name in shares)])
    sent = f"{format_bytes(run.bytes_up)} up and {format_bytes(run.bytes_down)} down"
    return f"{told}; {sent}; {run.seconds:.0f} s of rounds"


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean and half the width of its 95 % interval by Student's t.

    The interval is over seeds, which set partition, cohorts, batches and the initial adapter.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> round(mean, 2), round(half, 2)
    (2.0, 2.48)
    """
    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), math.nan)
    deviation = float(np.std(values, ddof=1))
    return Interval(float(np.mean(values)), student_t(count - 1) * deviation / math.sqrt(count))


@cache
def student_t(freedom: int) -> float:
    """Returns the t for which 95 % of Student's distribution is between -t and t.

    With t = sqrt(n) tan(x), the density in x is proportional to cos(x)^(n - 1).
    """
    x = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(x) ** (freedom - 1)
    share = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, share / share[-1], x)))


def compare(directory: Path, labels: Sequence[str]) -> list[Row]:
    """Returns a row for each algorithm, over its finished seeds.

    Args:
      directory: of the comparison.
      labels: of the algorithms, as given; the others are compared with the first.
    """
    return rows_of({label: _finished_runs(directory / folder_of(label)) for label in labels})


def rows_of(runs: Mapping[str, Mapping[int, RunScores]]) -> list[Row]:
    """Returns a row for each algorithm; the others are compared with the first.

    Args:
      runs: by the label of the algorithm and the seed.
    """
    first = next(iter(runs.values()))
    rows = []
    for label, own in runs.items():
        names = [name for name in _SCORES if all(name in run.scores for run in own.values())]
        common = [seed for seed in own if seed in first]
        both = [name for name in names if all(name in first[seed].scores for seed in common)]
        gap = lambda name, own=own, common=common: [
            own[seed].scores[name] - first[seed].scores[name] for seed in common
        ]
        rows.append(
            Row(
                label,
                list(own),
                {name: interval([run.scores[name] for run in own.values()]) for name in names},
                {name: interval(gap(name)) for name in both},
                interval([run.bytes_up for run in own.values()]),
                interval([run.bytes_down for run in own.values()]),
            )
        )
    return rows


def write(directory: Path, labels: Sequence[str], *, command: str) -> str:
    """Writes comparison.json, .md, .csv and .png into the folder, and returns the table as text.

    Args:
      directory: of the comparison.
      labels: of the algorithms, as given.
      command: how the comparison was made, recorded in its files.

    Raises:
      FileNotFoundError: if an algorithm has no finished run in the folder.
    """
    directory = Path(directory)
    rows = compare(directory, labels)
    text = table(rows)
    content = {"command": command, "rows": [_as_dict(row) for row in rows]}
    write_text(directory / "comparison.json", seal_file(content))
    write_text(directory / "comparison.md", f"{text}\n\n`{command}`\n")
    write_text(directory / "comparison.csv", _csv(rows))
    draw_comparison(rows, directory / "comparison.png")
    return f"{text}\n\nresults    {directory}"


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table, best first: see `_order`."""
    names = [name for name in _SCORES if all(name in row.scores for row in rows)]
    header = ["algorithm", *(SCORES[name] for name in names), f"nats less {rows[0].label}'s"]
    lines = [[*header, "up", "down", "seeds"]]
    for row in sorted(rows, key=lambda row: _order(row, names)):
        scores = [score_text(name, row.scores[name]) for name in names]
        ahead = "" if row is rows[0] else nats_ahead(row)
        sent = [format_bytes(row.bytes_up.mean), format_bytes(row.bytes_down.mean)]
        lines.append([row.label, *scores, ahead, *sent, str(len(row.seeds))])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def nats_ahead(row: Row) -> str:
    """Returns the loss less that of the first algorithm, as text; "-" if one of them has none."""
    return score_text("loss", row.ahead["loss"], sign="+") if "loss" in row.ahead else "-"


def folder_of(label: str) -> str:
    """Returns the name of an algorithm's folder: its label with unsafe characters replaced."""
    kept = "".join(c if c.isalnum() or c in "_.=" else "-" for c in label)
    return kept.strip("-.") or "-"


def _finished_runs(directory: Path) -> dict[int, RunScores]:
    found = {int(path.parent.name.split("-")[-1]) for path in directory.glob("seed-*/summary.json")}
    if not found:
        raise FileNotFoundError(f"{directory} contains no finished run")
    return {seed: read_run(directory / f"seed-{seed}") for seed in sorted(found)}


def _order(row: Row, names: Sequence[str]) -> tuple[float, ...]:
    """Returns a key to sort by: accuracy where rows have labels, then exact match, then loss."""
    shares = [-row.scores[name].mean for name in ("accuracy", "exact_match") if name in names]
    return *shares, *([row.scores["loss"].mean] if "loss" in names else [])


def score_text(name: str, value: Interval, *, sign: str = "") -> str:
    """Returns a score with its half interval, if it has one: nats, or percent."""
    factor, form, unit = (1, f"{sign}.3f", "") if name == "loss" else (100, f"{sign}.1f", " %")
    half = "" if math.isnan(value.half) else f" ± {format(factor * value.half, form.strip('+'))}"
    return f"{format(factor * value.mean, form)}{half}{unit}"


def _as_dict(row: Row) -> dict[str, Any]:
    finite = lambda number: None if math.isnan(number) else number
    pair = lambda value: {"mean": value.mean, "half": finite(value.half)}
    each = lambda values: {name: pair(value) for name, value in values.items()}
    return {
        "algorithm": row.label,
        "seeds": row.seeds,
        **each(row.scores),
        "less_first": each(row.ahead),
        "bytes_up": pair(row.bytes_up),
        "bytes_down": pair(row.bytes_down),
    }


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name in _SCORES if all(name in row.scores for row in rows)]
    both = lambda name: (name, f"{name}_half")
    columns = [column for name in (*names, "bytes_up", "bytes_down") for column in both(name)]
    writer.writerow(["algorithm", "seeds", *columns])
    for row in rows:
        values = [*(row.scores[name] for name in names), row.bytes_up, row.bytes_down]
        writer.writerow([row.label, len(row.seeds), *(x for value in values for x in value)])
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Writes a text file, completely or not at all."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
