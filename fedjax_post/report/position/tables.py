"""Tables of a ladder: scores and costs of each method, and what was run."""

from collections.abc import Callable, Iterable
from typing import Any

from fedjax_post.report.comparison import Interval, interval
from fedjax_post.report.markup import Block, Bullets, Code, Prose, Table
from fedjax_post.report.position.controls import (
    CONTROLS,
    best_control,
    best_prompts,
    controls,
    manual_prompts,
    scores_of,
)
from fedjax_post.report.position.ladder import (
    MEASURES,
    Cell,
    Ladder,
    accuracy,
    calibrated,
    counts_templates,
    measure_of,
    of_kind,
    over_seeds,
    ranked,
    shown,
)
from fedjax_post.report.position.rules import count, gate, percent, points, unreadable
from fedjax_post.report.position.thresholds import THRESHOLDS
from fedjax_post.report.table import format_bytes


def reached(ladder: Ladder) -> list[Block]:
    """Returns the ladder's table, with one row for each method, and a legend of its columns."""
    if not ladder.cells:
        return [Prose("Missing: the ladder's cells.")]
    measure = measure_of(ladder)
    more = _also(ladder)
    head = ("method", "tier", "kind", measure, *more, "up",
            "down", "queries", "private tokens left", "if hosted", "unique", "labels", "cost",
            "use discloses", "seeds")  # fmt: skip
    rows = [_row(ladder, cell, more.values()) for cell in ladder.cells if cell.runs]
    absent = [cell.label for cell in ladder.cells if not cell.runs]
    found: list[Block] = [Table(head, rows)]
    if absent:
        found.append(Prose(f"Missing, no finished run: {', '.join(absent)}."))
    chance = ladder.facts.get("chance")
    found.append(
        Prose(
            f"Majority, the share of the commonest label: {percent(chance)}; chance, one of the "
            f"labels at random: {_uniform(ladder)}. {_labels(more)}"
            "Means over the seeds with 95 % intervals (Student's t), sums over all clients and "
            "rounds. 'private tokens left' is what reached a party outside the federation as the "
            "cell was run, 'unique' and 'cost' as well; 'if hosted' is what a provider of the "
            "target would have seen of the same run. 'use discloses': whether questions go to a "
            "provider when what was made is used, which is not counted."
            f"{_templates(ladder)}"
        )
    )
    return found


def _also(ladder: Ladder) -> dict[str, Callable[[Cell], Interval | None]]:
    """Returns the scores that are shown beside the one by which cells are compared, by name."""
    by_rank = measure_of(ladder) == MEASURES["accuracy"]
    beside = {"calibrated": calibrated} if by_rank else {"accuracy": ranked}
    return {name: fn for name, fn in beside.items() if any(map(fn, ladder.cells))}


def _row(
    ladder: Ladder, cell: Cell, also: Iterable[Callable[[Cell], Interval | None]]
) -> tuple[str, ...]:
    ledger = lambda name: over_seeds(cell, lambda run: run.disclosure.get(name))
    sent = lambda name: _bytes(over_seeds(cell, lambda run: getattr(run, name)))
    score = percent(accuracy(cell))
    why = unreadable(gate(ladder)) if cell.kind == "closed" else ""
    cost, use = ledger("cost"), ledger("serving_discloses")
    return (
        cell.label,
        cell.tier,
        cell.kind,
        f"undecided: {why} (scored {score})" if why else score,
        *(percent(score_fn(cell)) for score_fn in also),
        sent("bytes_up"),
        sent("bytes_down"),
        count(over_seeds(cell, lambda run: run.spent["queries"])),
        count(ledger("private_tokens")),
        "needs no host" if cell.kind == "open" else count(shown(cell)),
        count(ledger("unique_private_tokens")),
        count(ledger("labels")),
        "missing" if cost is None else f"{cost.mean:.4g}",
        "missing" if use is None else "yes" if use.mean else "no",
        ", ".join(map(str, cell.runs)),
    )


def controlled(ladder: Ladder) -> list[Block]:
    """Returns a table of what each method gains over its control, and which are missing."""
    rows = []
    for cell in [*of_kind(ladder, "closed"), *of_kind(ladder, "open")]:
        control, missing = best_control(ladder, cell)
        if not control.scores and not missing:
            continue
        own = scores_of(cell)
        gains = [own[seed] - score for seed, score in control.scores.items() if seed in own]
        rows.append(
            (
                cell.label,
                ", ".join(control.chosen) or "missing",
                percent(interval(list(control.scores.values())) if control.scores else None),
                points(gains),
                "; ".join(missing),
            )
        )
    (manual, _), (_, how) = manual_prompts(ladder), best_prompts(ladder)
    absent = [title for key, title in CONTROLS.items() if not controls(ladder, key)]
    found: list[Block] = [
        Prose(
            "A closed method that asks nothing in training counts as using the target, and an "
            "open method as using the federation, only by what it gains over its control. That "
            "of an open method is the better of one client alone and its own start. The "
            f"ladder has {len(manual)} manual prompts, of which the best is chosen {how}."
        )
    ]
    if rows:
        head = ("method", "control", f"control's {measure_of(ladder)}", "gain over it", "missing")
        found.append(Table(head, rows))
    if absent:
        found.append(Prose(f"Missing controls: {'; '.join(absent)}."))
    return found


def thresholds() -> list[Block]:
    """Returns a table of all thresholds, with the history of each."""
    rows = [
        (
            one.name,
            f"{change.value:g}",
            one.unit,
            one.meaning,
            change.date,
            "yes" if change.set_blind else "no",
            change.reason,
        )
        for one in THRESHOLDS
        for change in one.history
    ]
    head = ("threshold", "value", "unit", "meaning", "since", "before any ladder", "reason")
    return [
        Prose(
            "A threshold that was not set before any ladder was set by people who knew the first "
            "ladders' outcomes."
        ),
        Table(head, rows),
    ]


def provenance(ladder: Ladder) -> list[Block]:
    """Returns what is needed to run the ladder again, read from the run folders."""
    runs = [run for cell in ladder.cells for run in cell.runs.values()]
    each = lambda name: distinct(run.summary.get(name) for run in runs)
    versions = distinct(
        f"{package} {version}"
        for run in runs
        for package, version in (run.summary.get("versions") or {}).items()
        if version
    )
    population = [run.summary.get("population") or {} for run in runs]
    sizes = distinct(
        f"{p['clients']} clients with {p['examples']} examples"
        for p in population
        if "clients" in p and "examples" in p
    )
    labels = ladder.facts.get("labels")
    found: list[Block] = [
        Bullets(
            [
                f"model: {each('model')}; data: {each('dataset')}",
                f"labels: {', '.join(map(str, labels)) if labels else 'missing'}",
                f"clients: {sizes}; held out: {each('heldout_examples')} rows",
                f"seeds: {distinct(seed for cell in ladder.cells for seed in cell.runs)}",
                f"commits: {each('commit')}",
                f"device: {each('device')}",
                f"versions: {versions}",
            ]
        )
    ]
    commands = ladder.facts.get("commands") or []
    firsts = [next(iter(cell.runs.values())) for cell in ladder.cells if cell.runs]
    own = [run.summary["command"] for run in firsts if run.summary.get("command")]
    found.append(Prose("What was called, then each method's own run with its first seed:"))
    found.append(Code([*commands, *own] or ["# missing"]))
    return found


def distinct(values: Iterable[Any]) -> str:
    """Returns the distinct values, in order of occurrence, as text."""
    known = dict.fromkeys(str(value) for value in values if value is not None)
    return ", ".join(known) or "missing"


def _labels(names: Iterable[str]) -> str:
    told = {
        "accuracy": "'accuracy' is the share of rows whose label is the most likely of all. ",
        "calibrated": "'calibrated' is the same after subtraction of what the label's "
        "log-probability is without the row (PMI). ",
    }
    return "".join(told[name] for name in names)


def _uniform(ladder: Ladder) -> str:
    labels = ladder.facts.get("labels")
    return percent(1 / len(labels)) if labels else "missing"


def _templates(ladder: Ladder) -> str:
    """Returns a note on the cells whose counts include more than private tokens, or ""."""
    whole = [c.label for c in ladder.cells if any(map(counts_templates, c.runs.values()))]
    told = "their files tell all tokens of the questions only, the template's included"
    return f" Too many 'if hosted' for {', '.join(whole)}: {told}." if whole else ""


def _bytes(value: Interval | None) -> str:
    return "missing" if value is None else format_bytes(value.mean)
