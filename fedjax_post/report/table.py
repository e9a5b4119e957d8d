"""A run's summary as a text table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Summary = dict[str, Any]

# The scores of a model, with their titles in tables; all but the loss are shares in [0, 1]
SCORES = {
    "loss": "nats/token",
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "accuracy_per_token": "acc. per token",
    "accuracy_pmi": "acc. pmi",
    "preference": "pairs preferred",
}


def summary_table(summary: Summary, directory: str | Path) -> str:
    """Returns a table of the base's and the run's scores, also by task, and the run's costs."""
    base, final = summary["base"], summary["final"]
    names = [name for name in SCORES if name in base]
    header = ["held out"]
    for name in names:
        header += [f"{SCORES[name]}: base", "this run"]
    rows = [_score_row("all", base, final, names)]
    if (apart := summary.get("heldout_clients")) is not None:
        rows.append(_score_row("held-out clients", apart["base"], apart["final"], names))
    for task, scores in base.get("per_task", {}).items():
        rows.append(_score_row(task, scores, final["per_task"][task], names))
    lines = [
        columns([header, *rows]),
        "",
        *left_out_lines(summary.get("left_out")),
        *_undecided_lines(final),
        *_costs(summary),
    ]
    lines.append(f"results    {directory}")
    return "\n".join(lines)


def format_bytes(count: float) -> str:
    """Returns a number of bytes with a unit, rounded to three digits.

    >>> format_bytes(1234567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def left_out_lines(counts: Mapping[str, int] | None) -> list[str]:
    """Returns a line on the rows that some scores leave out, if there are any."""
    told = [f"{count:,} rows from {SCORES[name]}" for name, count in (counts or {}).items()]
    return [f"left out   {' and '.join(told)}; cut, too long or without a label"] if told else []


def _undecided_lines(scores: Mapping[str, Any]) -> list[str]:
    """Returns a line on the ranks that a host's answers leave open, if there are any."""
    shares = {name: scores.get(f"{name}_undecided") for name in ("accuracy", "accuracy_pmi")}
    told = [f"{share:.1%} of rows by {SCORES[name]}" for name, share in shares.items() if share]
    reason = "labels are not among the tokens that the host returned; counted as wrong"
    return [f"undecided  {' and '.join(told)}: {reason}"] if told else []


def _costs(summary: Summary) -> list[str]:
    lines = []
    if summary["bytes_up"] is not None:
        up, down = summary["bytes_up"], summary["bytes_down"]
        each_up, each_down = summary["bytes_up_per_client"], summary["bytes_down_per_client"]
        lines = [
            f"bytes up   {each_up:,} per client and round, {up:,} in all ({format_bytes(up)})",
            f"bytes down {each_down:,} per client and round, {down:,} in all "
            f"({format_bytes(down)})",
        ]
    telemetry = ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}"
        for name, value in summary.get("telemetry", {}).items()
    )
    lines += [f"last round {telemetry}"] if telemetry else []
    if summary.get("virtual_seconds") is not None:
        lines.append(f"virtual    {summary['virtual_seconds']:,.4g} seconds on clients' own time")
    if (private := summary.get("privacy")) is not None:
        spent = "none" if (epsilon := private["epsilon"]) is None else f"{epsilon:.3g}"
        lines += [
            f"privacy    ({spent}, {private['delta']:.2g}) of each "
            f"{private['unit']}; neighbours: {private['neighbours']}",
            f"           sampling: {private['sampling_accounted']}; the numbers in this table are "
            "not covered",
        ]
        lines += [f"           {note}" for note in [private["simulated"]] if note]
    if (audit := summary.get("audit")) is not None:
        lines.append(
            f"audit      epsilon is at least {audit['epsilon']:.3g} with confidence "
            f"{audit['confidence']:g}, from {audit['canaries']} canary clients"
        )
    if (backdoor := summary.get("backdoor")) is not None:
        before = summary["backdoor_base"]["exact_match"]
        lines.append(
            f"backdoor   {backdoor['exact_match']:.1%} of prompts with the trigger have its target "
            f"as their answer (before training {before:.1%})"
        )
    if (secure := summary.get("secure_sum")) is not None:
        lines.append(
            f"secure     sums of {secure['threshold']} clients or more; "
            f"{len(secure['rounds_not_opened'])} of {summary['rounds']} rounds were not opened and "
            "changed nothing"
        )
    if summary["dropped_visits"]:
        lines.append(f"dropped    {summary['dropped_visits']} of {summary['visits']} visits")
    return [
        *lines,
        f"tokens/s   {summary['tokens_per_second']:,.0f} in training, in the median round",
        f"seconds    {summary['seconds']:.0f} in all, {summary['train_seconds']:.0f} in "
        f"{summary['rounds']} rounds",
    ]


def score_cells(scores: Summary, names: list[str]) -> list[str]:
    """Returns scores as texts: losses in nats per token, shares in percent, "-" without a value.

    Args:
      scores: by name.
      names: of the scores to return.
    """
    forms = {"loss": "{:.3f}"}
    return [
        forms.get(name, "{:.1%}").format(scores[name]) if name in scores else "-" for name in names
    ]


def _score_row(task: str, base: Summary, final: Summary, names: list[str]) -> list[str]:
    before, after = score_cells(base, names), score_cells(final, names)
    return [task, *(cell for pair in zip(before, after, strict=True) for cell in pair)]


def columns(rows: list[list[str]]) -> str:
    """Returns rows as aligned text, with a line below the first row.

    The first column is aligned to the left, the others to the right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)
