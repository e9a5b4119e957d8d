"""The measured part of each hypothesis: its contrasts, or why they cannot be made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.report.position.budgets import off_budget
from fedjax_post.report.position.contrasts import (
    Contrast,
    Shown,
    all_alike,
    any_ahead,
    less,
)
from fedjax_post.report.position.controls import (
    Side,
    best_of,
    control_of,
    is_silent,
    manual_prompts,
    scores_of,
)
from fedjax_post.report.position.drills import FORGOTTEN, is_measured, mean_losses, shuts_out
from fedjax_post.report.position.ladder import Cell, Ladder, of_kind
from fedjax_post.report.position.leaks import is_plain
from fedjax_post.report.position.rules import gate, numbers, points, unreadable
from fedjax_post.report.position.statistics import share_interval
from fedjax_post.report.position.thresholds import ALPHA, CEILING, RARE


class Evidence(NamedTuple):
    """The contrasts of a hypothesis on a ladder."""

    contrasts: list[Contrast]
    shown: Shown | None  # None if nothing can be decided
    lacking: str  # why not
    numbers: list[str]


def _judged(
    contrasts: Sequence[Contrast],
    join_fn: Callable[[Sequence[Contrast]], Shown],
    *,
    lacking: str,
    told: Sequence[str] = (),
) -> Evidence:
    """Returns the evidence of some contrasts, with the first reason against deciding."""
    lines = [f"{c.name}: {points(c.differences)}" for c in contrasts]
    usable = [c for c in contrasts if c.differences]
    if not lacking and contrasts and len(usable) < len(contrasts):
        lacking = "no seed in common"
    if not lacking and usable and all(c.solved for c in usable):
        lacking = f"both sides reach {100 * CEILING.value:.0f} %"
    shown = None if lacking or not usable else join_fn(usable)
    return Evidence(list(contrasts), shown, lacking, [*lines, *told])


def privacy(ladder: Ladder) -> Evidence:
    """Returns the evidence on H1: what methods that ask nothing in training gain by the target."""
    silent = [cell for cell in of_kind(ladder, "closed") if is_silent(cell)]
    contrasts, missing = _over_controls(ladder, silent)
    lacking = _unreadable(ladder) or _missing(missing)
    if not silent:
        lacking = "no closed-side method that asks nothing in training"
    return _judged(contrasts, any_ahead, lacking=lacking)


def utility(ladder: Ladder) -> Evidence:
    """Returns the evidence on H3: the best open method against the best that uses the target."""
    open_cells, closed = of_kind(ladder, "open"), of_kind(ladder, "closed")
    silent = [cell for cell in closed if is_silent(cell)]
    manual, missing = manual_prompts(ladder)
    counted = []
    for cells in (open_cells, silent):
        gains, lacks = _over_controls(ladder, cells)
        missing += lacks
        counted.append([c for c, gain in zip(cells, gains, strict=True) if _gains(gain)])
    asking = [cell for cell in closed if cell not in silent]
    others = [c for c in of_kind(ladder, "baseline") if c not in manual]
    best = best_of("the best open method", counted[0])
    rival = best_of("the best rival", [*asking, *counted[1], *others, *manual])
    lacking = _unreadable(ladder) or _missing(dict.fromkeys(missing))
    if not open_cells or not closed:
        lacking = "no scored cell of one side"
    elif not lacking and not best.scores:
        lacking = "no open method was shown to gain over one client alone"
    named = lambda side: f"{side.name} ({', '.join(side.chosen) or 'none'})"
    contrast = less(f"{named(best)} less {named(rival)}", best, rival, least=_row(ladder))
    dropped = [cell.label for cell in silent if cell not in counted[1]]
    told = [f"not counted as using the target: {', '.join(dropped)}"] if dropped else []
    if off := [cell.label for cell in off_budget(ladder)]:
        told.append(f"spending differs from the budget: {', '.join(off)}")
    own = [cell.label for cell in (*asking, *others) if cell.score == "personal"]
    if own:
        told.append(f"scored on each client's own tasks, not on all rows: {', '.join(own)}")
    return _judged([contrast], any_ahead, lacking=lacking, told=told)


def autonomy(ladder: Ladder) -> Evidence:
    """Returns the evidence on H2: losses in drills that can hurt either side."""
    return _losses(
        ladder,
        lambda row: not shuts_out(row) and row.get("drill") != FORGOTTEN,
        "no drill that can hurt an open method was run",
    )


def exclusion(ladder: Ladder) -> Evidence:
    """Returns the evidence on H8: losses of the federation where some clients are shut out."""
    return _losses(ladder, shuts_out, "no drill that shuts clients out of an open model was run")


def licence_barrier(ladder: Ladder) -> Evidence:
    """Returns the evidence on 'a licence of open weights is a barrier to taking part'."""
    rows = [r for r in _drills(ladder) if shuts_out(r) and "licence" in str(r.get("drill"))]
    known = _names(ladder, "open")
    losses = mean_losses([r for r in rows if r.get("method") in known and is_measured(r, "open")])
    lacking = "" if losses else "no drill in which a licence of open weights shuts clients out"
    contrast = Contrast("loss of open methods without those clients", losses, _row(ladder))
    return _judged([contrast] if losses else [], any_ahead, lacking=lacking)


def data_openness(ladder: Ladder) -> Evidence:
    """Returns the evidence on H6: tuned methods on two bases that share no training data."""
    cells = {cell.method: cell for cell in ladder.cells if cell.kind in ("open", "closed")}
    facts = ladder.facts.get("other_bases") or {}
    contrasts, told = [], []
    for base, others in ladder.bases.items():
        shared = (facts.get(base) or {}).get("shares_data")
        pairs = [
            less(f"{o.label}, this base less {base}", _side(cells[o.method]), _side(o))
            for o in others
            if o.method in cells
        ]
        pairs = [pair._replace(least=_row(ladder)) for pair in pairs]
        if shared is False:
            contrasts += pairs
        else:
            why = "shares data with this one" if shared else "may share data with this one"
            told += [
                f"{p.name}: {points(p.differences)} (not counted: {base} {why})" for p in pairs
            ]
    found, audit_told = _contaminated(ladder)
    lacking = found if contrasts else "no second base of other data"
    return _judged(contrasts, all_alike, lacking=lacking, told=[*told, *audit_told])


def updates(ladder: Ladder) -> Evidence:
    """Returns the evidence on H7: what attacks recover beyond guessing."""
    contrasts = [
        Contrast(
            f"{row.get('attack')} on {row.get('method')}, {row.get('wire', 'updates')}: recovered "
            "less guessed",
            [
                a - b
                for a, b in zip(
                    numbers(row.get("recovered")), numbers(row.get("guess")), strict=False
                )
            ],
        )
        for row in ladder.facts.get("attacks") or []
        if is_plain(row)
    ]
    return _judged(contrasts, any_ahead, lacking="" if contrasts else "no attack was run")


MEASURES: Mapping[str, Callable[[Ladder], Evidence]] = {
    "H1": privacy,
    "H2": autonomy,
    "H3": utility,
    "H6": data_openness,
    "H7": updates,
    "H8": exclusion,
}


def _over_controls(ladder: Ladder, cells: Sequence[Cell]) -> tuple[list[Contrast], list[str]]:
    """Returns a contrast of each cell with its control, and the controls that are missing."""
    contrasts, missing = [], []
    for cell in cells:
        others, lacks = control_of(ladder, cell)
        missing += lacks
        control = best_of("its control", others)
        name = f"{cell.label} less its control ({', '.join(control.chosen) or 'missing'})"
        contrasts.append(less(name, _side(cell), control, least=_row(ladder)))
    return contrasts, missing


def _gains(contrast: Contrast) -> bool:
    """Returns whether a cell gains over its control, uncorrected: it decides what is compared."""
    return bool(contrast.differences) and any_ahead([contrast]).p_for <= ALPHA.value


def _losses(ladder: Ladder, chosen: Callable[[Mapping[str, Any]], bool], unhurt: str) -> Evidence:
    """Returns the evidence of drills: the mean loss of the closed side less the open side's."""
    rows = [row for row in _drills(ladder) if chosen(row)]
    sides = {
        kind: mean_losses(
            [r for r in rows if r.get("method") in _names(ladder, kind) and is_measured(r, kind)]
        )
        for kind in ("closed", "open")
    }
    lacking = _unreadable(ladder)
    if not sides["open"]:
        lacking = unhurt
    if not sides["closed"]:
        lacking = "no drill that leaves a closed-side method a score was run"
    told = [
        f"mean loss of {kind} methods: {points(values)}" for kind, values in sides.items() if values
    ]
    gap = [a - b for a, b in zip(sides["closed"], sides["open"], strict=False)]
    name = "loss of closed-side methods less that of open methods"
    contrasts = [Contrast(name, gap, _row(ladder))] if gap else []
    return _judged(contrasts, any_ahead, lacking=lacking, told=told)


def _unreadable(ladder: Ladder) -> str:
    """Returns why scores cannot be compared; "" if they can."""
    found: dict[int, set[str]] = {}
    for cell in ladder.cells:
        for seed, run in cell.runs.items():
            found.setdefault(seed, set()).add(run.summary.get("heldout_digest", ""))
    differ = any(len(digests - {""}) > 1 for digests in found.values())
    return "cells of a seed were scored on different rows" if differ else unreadable(gate(ladder))


def _contaminated(ladder: Ladder) -> tuple[str, list[str]]:
    """Returns why scores cannot be read, if the corpus surely contains rows, and the audit."""
    audit = ladder.facts.get("audit") or {}
    found = audit.get("contamination") or {}
    if audit.get("refused"):
        return "", [f"the audit was refused: {audit['refused']}"]
    share, count = found.get("rows"), found.get("num_rows")
    if share is None or not count:
        return "", ["missing: an audit of the corpus, with the number of rows"]
    low, high = share_interval(round(share * count), count)
    told = (
        f"{round(share * count)} of {count} evaluation rows stand in the "
        f"{found.get('num_documents', 'unknown number of')} documents that were searched "
        f"({100 * low:.1f} to {100 * high:.1f} %)"
    )
    sampled = "; a sample of the corpus, so that more may stand in it"
    reason = "the corpus contains rows of the evaluation" if low > RARE.value else ""
    return reason, [told + (sampled if audit.get("sampled", True) else "")]


def _drills(ladder: Ladder) -> list[Mapping[str, Any]]:
    return [*(ladder.facts.get("drills") or []), *(ladder.facts.get("excluded") or [])]


def _names(ladder: Ladder, kind: str) -> set[str]:
    own = [cell for cell in ladder.cells if cell.kind == kind]
    return {name for cell in own for name in (cell.method, cell.label)}


def _side(cell: Cell) -> Side:
    return Side(cell.label, scores_of(cell), (cell.label,))


def _row(ladder: Ladder) -> float:
    """Returns one held-out row as a share, 0 where their number is unknown."""
    runs = [run for cell in ladder.cells for run in cell.runs.values()]
    known = [n for run in runs if (n := run.summary.get("heldout_examples"))]
    return 1 / max(known) if known else 0.0


def _missing(controls: Sequence[str] | Mapping[str, Any]) -> str:
    return f"control missing: {'; '.join(dict.fromkeys(controls))}" if controls else ""
