"""What a ladder left behind: the run folders of every method and seed, and `ladder.json`.

A cell of the ladder is a method at its tier of access, run with every seed in a folder
`<directory>/<method>/seed-<seed>`; the same on another base lies in `<directory>/bases/<base>`.
What a folder or the file does not say is None here: nothing is filled in. Only where a summary
has `queries`, `tokens_sent` or `labels_sent` as null, the method asked nothing: 0.

`ladder.json` holds, and each may be missing:

- `task`, `model`, `labels`, `commands`, and `chance` in [0, 1];
- `cells`: a list of `method` (its folder), `label` (for people), `tier` (of the target), `kind`
  (open, closed or baseline) and `score` (final, personal or base: which of a summary's);
- `gate`: in [0, 1] `manual_prompt`, `chance`, `soft_prompt_share` and `gain`, LoRA's; `passed`;
- `drills` and `excluded`: lists of `drill`, `method` (or its label), `before`, `after`, `lost`
  (exact match, a number or a list of one for each seed), `can_train`, `can_serve` and `note`;
- `audit`: `contamination`, of it `rows`, the share of evaluation rows whose question and answer
  stand in the corpus, and whatever else was found; or `refused`, the reason;
- `passports`: name -> `class`, `licence`, `tier` and the licence's `rules`;
- `matrix`: `methods`, how many are registered, and for each tier how many of them run;
- `attacks`: a list of `attack`, `method`, `recovered` and `guess`, shares of private text, a
  number or a list of one for each seed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post import integrity
from fedjax_post.report.comparison import Interval, folder_of, interval
from fedjax_post.report.records import Record, read_records, read_summary

# Tiers of access, most closed first. EMULATOR is a stand-in beside a model that stays closed.
TIERS = ("TEXT", "LOGITS", "EMBEDDINGS", "EMULATOR", "WEIGHTS", "GRADIENTS")
_SPENT = ("queries", "tokens_sent", "labels_sent")


class Point(NamedTuple):
    """How far a run had come after a round."""

    queries: float  # rows asked of the target so far
    exact_match: float  # held out, in [0, 1]


class Run(NamedTuple):
    """What one seed of a cell gave; None where its summary does not say."""

    exact_match: float | None  # in [0, 1], of the score that the cell names
    base: float | None  # the same of the base model, before any round
    bytes_up: float | None
    bytes_down: float | None
    spent: dict[str, float | None]  # queries, tokens_sent, labels_sent
    inference: str | None  # client, server or provider
    disclosure: dict[str, float]  # to parties outside the federation
    curve: list[Point]
    summary: dict[str, Any]


class Cell(NamedTuple):
    """One method of the ladder, over the seeds that have finished."""

    method: str
    label: str  # for people
    tier: str  # of the target model
    kind: str  # open, closed or baseline
    score: str  # which of a summary's scores is this cell's
    runs: dict[int, Run]


class Ladder(NamedTuple):
    """All cells, and what else was measured: `ladder.json` as it stands."""

    cells: list[Cell]
    facts: Mapping[str, Any]
    bases: dict[str, list[Cell]]  # the cells that were run on other bases too


def read_ladder(directory: Path) -> Ladder:
    """Returns the ladder in a folder; a cell without a finished run has no runs.

    Raises:
      FileNotFoundError: if there is no ladder.json.
      DamagedError: if it is not as it was written.
      ValueError: if a cell lacks its method, tier or kind.
    """
    path = Path(directory) / "ladder.json"
    facts = integrity.read_file(path)
    cells = facts.get("cells", [])
    if not isinstance(cells, list):
        raise ValueError(f"{path}: cells must be a list, got {type(cells).__name__}")
    for row in cells:
        lacking = {"method", "tier", "kind"} - set(row if isinstance(row, dict) else ())
        if lacking:
            raise ValueError(f"{path}: the cell {row} lacks {', '.join(sorted(lacking))}")
    read = lambda folder: [_cell(folder, row) for row in cells]
    others = sorted(path for path in (Path(directory) / "bases").glob("*") if path.is_dir())
    bases = {path.name: [cell for cell in read(path) if cell.runs] for path in others}
    return Ladder(read(Path(directory)), facts, bases)


def of_kind(ladder: Ladder, kind: str) -> list[Cell]:
    """Returns the finished cells that are open, closed or baselines."""
    return [cell for cell in ladder.cells if cell.kind == kind and cell.runs]


def over_seeds(cell: Cell, value_fn: Callable[[Run], float | None]) -> Interval | None:
    """Returns the mean and interval of a number over a cell's seeds; None if a seed lacks it."""
    values = [value_fn(run) for run in cell.runs.values()]
    known = [value for value in values if value is not None]
    return interval(known) if known and len(known) == len(values) else None


def accuracy(cell: Cell) -> Interval | None:
    """Returns the held-out exact match over the seeds, in [0, 1]."""
    return over_seeds(cell, lambda run: run.exact_match)


def disclosed(run: Run) -> float | None:
    """Returns the private tokens that left the federation in this run, as it was run."""
    return run.disclosure.get("private_tokens")


def if_hosted(run: Run) -> float | None:
    """Returns the private tokens that a provider of the target has seen, or would have seen.

    Where inference ran at a provider it is what was sent; where it ran in the federation
    it is what the same run asked of the target: `if_hosted` of its disclosure or, where that
    is not told, all tokens of its questions, see `counts_templates`.
    """
    if run.inference == "provider":
        return disclosed(run)
    return run.disclosure.get("if_hosted", run.spent["tokens_sent"])


def counts_templates(run: Run) -> bool:
    """Returns whether `if_hosted` counts the template around each question too."""
    asked = run.inference != "provider" and "if_hosted" not in run.disclosure
    return asked and bool(run.spent["tokens_sent"])


def shown(cell: Cell) -> Interval | None:
    """Returns the private tokens that a host of the target sees if that is a provider.

    Of an open method, which needs no host, it is what left the federation as it was run.
    """
    return over_seeds(cell, disclosed if cell.kind == "open" else if_hosted)


def asks(cell: Cell) -> bool:
    """Returns whether a cell works by asking the target, wherever that runs."""
    return cell.tier in ("TEXT", "LOGITS", "EMBEDDINGS")


def _cell(directory: Path, row: Mapping[str, Any]) -> Cell:
    method, score = row["method"], row.get("score", "final")
    folders = (directory / folder_of(method)).glob("seed-*/summary.json")
    found = sorted((int(path.parent.name.split("-")[-1]), path.parent) for path in folders)
    runs = {seed: _run(folder, score) for seed, folder in found}
    return Cell(method, row.get("label", method), row["tier"], row["kind"], score, runs)


def _run(folder: Path, score: str) -> Run:
    summary = read_summary(folder)
    records = read_records(folder) if (folder / "records.jsonl").exists() else []
    exact = lambda name: (summary.get(name) or {}).get("exact_match")
    disclosure = summary.get("disclosure") or {}
    return Run(
        exact(score),
        exact("base"),
        summary.get("bytes_up"),
        summary.get("bytes_down"),
        {name: summary[name] or 0 if name in summary else None for name in _SPENT},
        summary.get("inference"),
        {name: value for name, value in disclosure.items() if value is not None},
        _curve(records),
        summary,
    )


def _curve(records: list[Record]) -> list[Point]:
    """The rounds where exact match was scored, with what had been asked by then."""
    points, queries = [], 0.0
    for record in records:
        queries += record.get("queries") or 0
        if record.get("eval_exact_match") is not None:
            points.append(Point(queries, record["eval_exact_match"]))
    return points
