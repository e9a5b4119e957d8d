"""Reads a ladder's results: the run folders of every method and seed, and `ladder.json`.

A cell of the ladder is a method at its access tier, run with every seed in the folder
`<directory>/<method>/seed-<seed>`; runs on another base model are in `<directory>/bases/<base>`,
and those with several times the budget in `<directory>/longer`. A base's folder is its name, in
which unsafe characters are replaced.
Values that the folders and the file do not contain are None here. The only exception: if a summary
has null for `queries`, `tokens_sent` or `labels_sent`, the method queried nothing, and the value
is 0.

`ladder.json` contains the following; each may be missing:

- `task`, `model`, `labels`, `commands`, and `chance`, the share of the commonest answer;
- `measure`: by which score cells are compared, a key of `MEASURES`; exact_match if it is missing;
- `cells`: a list of `method` (its folder), `label` (for people), `tier` (of the target), `kind`
  (open, closed, baseline or control), `control` (which one, see `position.controls`) and `score`
  (which of a summary's scores: final, personal or base);
- `gate`: `manual_prompt`, `chance`, `soft_prompt_share` and `gain` (that of LoRA), in [0, 1];
  `seeds` that they are means over, all if they are missing; `passed`;
- `drills` and `excluded`: lists of `drill`, `method` (or its label), `before`, `after`, `lost`
  (by `measure`, a number or a list with one for each seed), `rounds` (of these runs), `can_train`,
  `can_serve`, `note` and `by_definition` (whether the loss follows from what a method declares, so
  that it is none measured);
- `other_bases`: name -> `shares_data`, whether it and the model have read the same data;
- `audit`: `contamination`, with `rows`, the share of evaluation rows whose question and answer
  are in the corpus, `num_rows` and further results; `sampled`, whether a part of the corpus was
  searched; or `refused`, the reason;
- `passports`: name -> `class`, `licence`, `tier`, `own` (whether this project trained it) and the
  licence's `rules`;
- `matrix`: `methods`, the number of registered methods, and for each tier how many of them run;
- `attacks`: a list of `attack`, `method`, `recovered` and `guess`, shares of the private tokens of
  questions, a number or a list with one for each seed, `guess` being the mean over many draws of
  questions; `tokens`, how many there were; `party` that attacks (server); `wire`, its
  `protection` (none if it is missing), and whether it is `own`, that of the method's cell;
- `budget`: tokens through the model that a run of each cell should take;
- `longer`: `times`, the factor of the budget of the longer runs;
- `search`: `seed`, `trials`, and `cells`: method -> `tried` settings, their `scores`, and `chosen`,
  the number of the best; `prompts`: manual prompt -> its score on that seed, by `measure`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post import integrity
from fedjax_post.report.comparison import Interval, folder_of, interval
from fedjax_post.report.records import Record, read_records, read_summary

# Access tiers, most closed first. FINETUNE: the host of a closed model trains it on rows that are
# sent there. EMULATOR: clients train an emulator of a model that stays closed.
TIERS = ("TEXT", "LOGITS", "EMBEDDINGS", "FINETUNE", "EMULATOR", "WEIGHTS", "GRADIENTS")
COMPARED = ("open", "closed")  # kinds whose scores verdicts compare at equal budget
LONGER = "longer"  # folder of the runs with several times the budget
UNPROTECTED = "none"  # the protection of a wire that has none
_SPENT = ("queries", "tokens_sent", "labels_sent")
# Scores by which cells can be compared, and their names for people
MEASURES = {"exact_match": "exact match", "accuracy": "rank accuracy"}
CALIBRATED = "accuracy_pmi"  # the score that is shown beside rank accuracy; see `calibrated`


class Point(NamedTuple):
    """A point of a run's curve, after some round."""

    queries: float  # rows sent to the target so far
    right: float  # share of held-out rows, in [0, 1], by the ladder's measure


class Run(NamedTuple):
    """The results of one seed of a cell; None for values that its summary lacks."""

    right: float | None  # share of held-out rows, in [0, 1], of the cell's `score`
    base: float | None  # the same of the base model, before any round
    bytes_up: float | None
    bytes_down: float | None
    spent: dict[str, float | None]  # queries, tokens_sent, labels_sent
    inference: str | None  # client, server or provider
    disclosure: dict[str, float]  # to parties outside the federation
    curve: list[Point]
    summary: dict[str, Any]
    used: Mapping[str, float] = {}  # queries and private tokens of uses that a provider was shown


class Cell(NamedTuple):
    """One method of the ladder, over the seeds that have finished."""

    method: str
    label: str  # for people
    tier: str  # of the target model
    kind: str  # open, closed, baseline or control
    score: str  # which of a summary's scores is used
    runs: dict[int, Run]
    control: str = ""  # a key of `controls.CONTROLS`, if it is one


class Ladder(NamedTuple):
    """All cells, and the other measurements."""

    cells: list[Cell]
    facts: Mapping[str, Any]  # content of `ladder.json`
    bases: dict[str, list[Cell]]  # other base model -> the cells that were run on it too
    longer: Mapping[str, Cell] = {}  # method -> its cell with several times the budget


def read_ladder(directory: Path) -> Ladder:
    """Returns the ladder in a folder; a cell without a finished run has no runs.

    Raises:
      FileNotFoundError: if there is no ladder.json.
      DamagedError: if it has changed since it was written.
      ValueError: if a cell lacks its method, tier or kind, or the measure is none of `MEASURES`.
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
    measure = facts.get("measure", "exact_match")
    if measure not in MEASURES:
        raise ValueError(f"{path}: measure={measure!r} must be one of {', '.join(MEASURES)}")
    read = lambda folder: [_cell(folder, row, measure) for row in cells]
    others = sorted(path for path in (Path(directory) / "bases").glob("*") if path.is_dir())
    names = {folder_of(name): name for name in facts.get("other_bases") or {}}
    bases = {
        names.get(path.name, path.name): [cell for cell in read(path) if cell.runs]
        for path in others
    }
    longer = {cell.method: cell for cell in read(Path(directory) / LONGER) if cell.runs}
    return Ladder(read(Path(directory)), facts, bases, longer)


def of_kind(ladder: Ladder, kind: str) -> list[Cell]:
    """Returns the finished cells of a kind: open, closed, baseline or control."""
    return [cell for cell in ladder.cells if cell.kind == kind and cell.runs]


def on_all_rows(cell: Cell) -> bool:
    """Returns whether a cell is scored on all held-out rows, and not each client on its own.

    A client's own rows have its own mixture of labels, of which any method of its own gains.
    """
    if cell.score != "personal":
        return True
    tables = [
        (run.summary.get("clients") or {}).get("personal") or {} for run in cell.runs.values()
    ]
    return all(table.get("rows") == "all" for table in tables)


def comparable(ladder: Ladder, kind: str) -> list[Cell]:
    """Returns the finished cells of a kind that are scored on the rows of the other cells."""
    return [cell for cell in of_kind(ladder, kind) if on_all_rows(cell)]


def over_seeds(cell: Cell, value_fn: Callable[[Run], float | None]) -> Interval | None:
    """Returns the mean and interval of a number over a cell's seeds; None if a seed lacks it."""
    values = [value_fn(run) for run in cell.runs.values()]
    known = [value for value in values if value is not None]
    return interval(known) if known and len(known) == len(values) else None


def least_row(ladder: Ladder) -> float:
    """Returns one held-out row as a share, 0 where their number is unknown."""
    runs = [run for cell in ladder.cells for run in cell.runs.values()]
    known = [n for run in runs if (n := run.summary.get("heldout_examples"))]
    return 1 / max(known) if known else 0.0


def accuracy(cell: Cell) -> Interval | None:
    """Returns the share of held-out rows that are right, over the seeds, in [0, 1]."""
    return over_seeds(cell, lambda run: run.right)


def measure_of(ladder: Ladder) -> str:
    """Returns the name, for people, of the score by which cells are compared."""
    return MEASURES[ladder.facts.get("measure", "exact_match")]


def ranked(cell: Cell) -> Interval | None:
    """Returns the share of held-out rows whose label is ranked first, in [0, 1], over the seeds."""
    return over_seeds(cell, lambda run: (run.summary.get(cell.score) or {}).get("accuracy"))


def calibrated(cell: Cell) -> Interval | None:
    """Returns the share of rows that are right by `accuracy_pmi`, in [0, 1], over the seeds."""
    return over_seeds(cell, lambda run: (run.summary.get(cell.score) or {}).get(CALIBRATED))


def disclosed(run: Run) -> float | None:
    """Returns the number of private tokens that left the federation in this run."""
    return run.disclosure.get("private_tokens")


def if_hosted(run: Run) -> float | None:
    """Returns the number of private tokens that a provider of the target has, or would have, seen.

    If inference ran at a provider, this is the number that was sent. If it ran in the federation,
    this is the number that the same run sent to the target: `if_hosted` of its disclosure or, if
    that is missing, all tokens of its questions, see `counts_templates`.
    """
    if run.inference == "provider":
        return disclosed(run)
    return run.disclosure.get("if_hosted", run.spent["tokens_sent"])


def evaluated(run: Run, name: str) -> float | None:
    """Returns what evaluation disclosed, by the name of a count: private_tokens, queries, cost."""
    return ((run.summary.get("disclosure") or {}).get("evaluation") or {}).get(name)


def counts_templates(run: Run) -> bool:
    """Returns whether `if_hosted` also counts the template around each question."""
    asked = run.inference != "provider" and "if_hosted" not in run.disclosure
    return asked and bool(run.spent["tokens_sent"])


def shown(cell: Cell) -> Interval | None:
    """Returns the number of private tokens that the target's host sees if it is a provider.

    For an open method, which needs no host, it is the number that left the federation.
    """
    return over_seeds(cell, disclosed if cell.kind == "open" else if_hosted)


def asks(cell: Cell) -> bool:
    """Returns whether a cell's method queries the target, wherever it runs."""
    return cell.tier in ("TEXT", "LOGITS", "EMBEDDINGS", "FINETUNE")


def _cell(directory: Path, row: Mapping[str, Any], measure: str) -> Cell:
    method, score = row["method"], row.get("score", "final")
    folders = (directory / folder_of(method)).glob("seed-*/summary.json")
    found = sorted((int(path.parent.name.split("-")[-1]), path.parent) for path in folders)
    runs = {seed: _run(folder, score, measure) for seed, folder in found}
    label, control = row.get("label", method), row.get("control", "")
    return Cell(method, label, row["tier"], row["kind"], score, runs, control)


def _run(folder: Path, score: str, measure: str) -> Run:
    summary = read_summary(folder)
    records = read_records(folder) if (folder / "records.jsonl").exists() else []
    right = lambda name: (summary.get(name) or {}).get(measure)
    disclosure = summary.get("disclosure") or {}
    return Run(
        right(score) if _counted(summary) else None,
        right("base"),
        summary.get("bytes_up"),
        summary.get("bytes_down"),
        {name: summary[name] or 0 if name in summary else None for name in _SPENT},
        summary.get("inference"),
        {name: value for name, value in disclosure.items() if value is not None},
        _curve(records, f"eval_{measure}"),
        summary,
        _used(folder),
    )


def _used(folder: Path) -> dict[str, float]:
    """Returns what uses of a run have shown to parties outside the federation; {} without any."""
    path = folder / "disclosure.jsonl"
    lines = integrity.read_lines(path) if path.exists() else ()
    found = [line for line in lines if line.get("purpose") == "use" and line["outside"]]
    names = ("queries", "private_tokens") if found else ()
    return {name: sum(line[name] for line in found) for name in names}


def _counted(summary: Mapping[str, Any]) -> bool:
    """Returns whether any visit counted: else the score is that of the start, and no result."""
    visits = summary.get("visits") or 0
    return not visits or summary.get("dropped_visits", 0) < visits


def _curve(records: list[Record], name: str) -> list[Point]:
    """Returns a point for each round whose record has a score of a name."""
    points, queries = [], 0.0
    for record in records:
        queries += record.get("queries") or 0
        if record.get(name) is not None:
            points.append(Point(queries, record[name]))
    return points
