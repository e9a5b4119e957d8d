"""The sections of a page about runs. What a run does not have is said to be missing."""

import math
import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from fedjax_post.report import clients as by_client
from fedjax_post.report.comparison import interval, nats_ahead, rows_of
from fedjax_post.report.comparison import score_text as with_half
from fedjax_post.report.holdings import holdings_rows
from fedjax_post.report.markup import Block, Code, Prose, Table
from fedjax_post.report.runs.folders import Content, Experiment
from fedjax_post.report.scatter import readable
from fedjax_post.report.table import SCORES, format_bytes, score_cells

_PERSONAL = "Scores of runs that have personal models are those of personal models."


def missing(what: str) -> Prose:
    """Returns the sentence that says what is missing."""
    return Prose(f"Missing: {what}.")


def scores(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns the table of scores before and after training."""
    ended = [one for one in experiments if one.ended]
    if not ended:
        return [missing("scores, since no run has ended")]
    rows = rows_of({one.label: one.scores() for one in ended})
    names = [name for name in SCORES if any(name in row.scores for row in rows)]
    lines = []
    for one, row in zip(ended, rows, strict=True):
        base = score_cells(one.any.summary["base"], names)
        final = [with_half(n, row.scores[n]) if n in row.scores else "-" for n in names]
        apart = "" if row is rows[0] else nats_ahead(row)
        cells = [f"{was} → {now}" for was, now in zip(base, final, strict=True)]
        seeds = ", ".join(map(str, row.seeds))
        lines.append([readable(one.label), seeds, *cells, apart])
    head = ["experiment", "seeds", *(SCORES[n] for n in names), "nats less the first's"]
    told = (
        "Held out, before → after training: means over the seeds and 95 % intervals of Student's "
        "t; one seed has no interval, and the scores before are those of the first seed."
    )
    personal = any(run.summary.get("personal") for one in ended for run in one.ended.values())
    return [Prose(f"{told} {_PERSONAL if personal else ''}".strip()), Table(head, lines)]


def tasks(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns the table of scores by kind of task, after training, means over the seeds."""
    found = {readable(one.label): _by_task(one) for one in experiments}
    names = list(dict.fromkeys(task for own in found.values() for task in own))
    if not names:
        return []
    rows = [[task, *(own.get(task, "-") for own in found.values())] for task in names]
    return [Prose("After training, by kind of task:"), Table(["task", *found], rows)]


def costs(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns the table of bytes, time and memory."""
    of = lambda one, name: _mean([run.summary.get(name) for run in one.ended.values()])
    rows = []
    for one in experiments:
        sent = [of(one, f"bytes_{way}{each}") for way in ("up", "down") for each in ("", _EACH)]
        memory = [run.summary.get("memory") or {} for run in one.ended.values()]
        peaks = [_mean([own.get(kind) for own in memory]) for kind in ("host_peak", "device_peak")]
        seconds = [record["seconds"] for records in one.records for record in records]
        rows.append(
            [
                readable(one.label),
                *(_told(value, format_bytes) for value in sent),
                _told(of(one, "train_seconds"), "{:,.0f} s".format),
                _told(median(seconds) if seconds else None, "{:.2f} s".format),
                _told(of(one, "tokens_per_second"), "{:,.0f}".format),
                *(_told(value, format_bytes) for value in peaks),
            ]
        )
    head = ["experiment", "up, in all", "up, client and round", "down, in all"]
    head += ["down, client and round", "all rounds", "median round", "tokens/s"]
    head += ["peak of the process", "peak of the device"]
    return [
        Prose(
            "Means over the seeds. Bytes are those of the messages, exactly; a baseline sends "
            "none. Memory is the peak of the process that ran, scoring included; CPUs report no "
            "peak of the device."
        ),
        Table(head, rows),
    ]


def holdings(content: Content) -> list[Block]:
    """Returns the table of who holds what, without columns for more than 12 groups."""
    rows = holdings_rows(content)
    width = len(rows[0]) if len(content["groups"]) <= 12 else 4
    more = content["clients"] - len(rows) + 1
    left = [Prose(f"And {more:,} more clients.")] if more else []
    return [Table(rows[0][:width], [row[:width] for row in rows[1:]]), *left]


def spreads(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns the table of how scores are spread over clients."""
    found: list[Block] = []
    for one in experiments:
        tables = {
            name: own
            for name, own in (one.any.summary.get("clients") or {}).items()
            if own["scores"]
        }
        names = [n for n in SCORES if any(n in own["scores"] for own in tables.values())]
        for name, own in tables.items():
            title = f"{readable(one.label)}, seed {one.any.seed}: {by_client.heading(name, own)}"
            head = [title, *(SCORES[n] for n in names)]
            found.append(Table(head, by_client.spread_rows(own, names)))
    return found or [missing("scores by client")]


def entries(experiments: Sequence[Experiment], name: str, what: str) -> list[Block]:
    """Returns the table of an entry of the summaries, one column for each experiment that has it.

    Args:
      experiments: in order; each shows the run `Experiment.any`.
      name: of the entry, such as "disclosure".
      what: what is said to be missing where no run has the entry.
    """
    found = {
        f"{readable(one.label)}, seed {one.any.seed}": _flat(one.any.summary[name])
        for one in experiments
        if one.any.summary.get(name)
    }
    if not found:
        return [missing(what)]
    keys = dict.fromkeys(key for own in found.values() for key in own)
    rows = [[key, *(plain(own.get(key)) for own in found.values())] for key in keys]
    return [Table(["", *found], rows)]


def uses(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns the table of what uses have shown since the runs ended; nothing if there are none."""
    found = [
        [f"{readable(one.label)}, seed {run.seed}", line["party"], *(plain(line[n]) for n in _USED)]
        for one in experiments
        for run in one.runs.values()
        for line in run.disclosed
        if line.get("purpose") == "use"
    ]
    head = ["run", "to", *(name.replace("_", " ") for name in _USED)]
    told = "In use, since the runs ended, evaluations of finished runs included:"
    return [Prose(told), Table(head, found)] if found else []


def attacks(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns a table for each attack on the runs, from their `attacks.jsonl`."""
    found: list[Block] = []
    for one in experiments:
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for run in one.runs.values():
            for line in run.attacks:
                kind = str(line.get("attack", "attack"))
                kinds.setdefault(kind, []).append({"seed": run.seed, **_flat(line)})
        for kind, lines in kinds.items():
            named = ("attack", "command")  # above and below the table
            keys = list(dict.fromkeys(key for line in lines for key in line if key not in named))
            rows = [[plain(line.get(key)) for key in keys] for line in lines]
            commands = dict.fromkeys(shlex.join(line.get("command") or ()) for line in lines)
            found += [Prose(f"{kind}, on {readable(one.label)}:"), _upright(keys, rows)]
            found += [Code(list(filter(None, commands)))] if any(commands) else []
    return found or [missing("attacks; no run has attacks.jsonl")]


def plain(value: Any) -> str:
    """Returns a value of a record as text; numbers have four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(map(plain, value[:8]))
        return f"{shown} and {len(value) - 8} more" if len(value) > 8 else shown or "none"
    return str(value)


_EACH = "_per_client"
_USED = ("queries", "private_tokens", "unique_tokens", "cost")  # of a use, in the ledger


def _upright(keys: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table with a line for each record, or, of few records, for each key."""
    if len(keys) > 6 and len(rows) < len(keys):
        return Table(
            ["", *(str(number) for number, _ in enumerate(rows, 1))],
            [[key, *(row[place] for row in rows)] for place, key in enumerate(keys)],
        )
    return Table(keys, rows)


def _by_task(one: Experiment) -> dict[str, str]:
    """Returns the mean score of each kind of task: a share where there is one, else the loss."""
    own = [run.summary["final"].get("per_task", {}) for run in one.ended.values()]
    found = {}
    for task in dict.fromkeys(name for tables in own for name in tables):
        tables = [table[task] for table in own if task in table]
        name = next((n for n in ("accuracy", "exact_match") if n in tables[0]), "loss")
        values = [table[name] for table in tables if table.get(name) is not None]
        if values:
            found[task] = f"{with_half(name, interval(values))} {_UNITS[name]}".strip()
    return found


_UNITS = {"accuracy": "accuracy", "exact_match": "exact", "loss": "nats"}


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}, ")
        else:
            found[f"{before}{key}".replace("_", " ") if key != "attack" else key] = value
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _told(value: float | None, form: Any) -> str:
    return "-" if value is None or math.isnan(value) else form(value)
