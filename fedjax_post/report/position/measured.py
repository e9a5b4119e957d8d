"""The measured part of each hypothesis: its contrasts, or why they cannot be made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.report.position import losses
from fedjax_post.report.position.budgets import off_budget
from fedjax_post.report.position.contenders import (
    Contenders,
    leads_start,
    left_told,
    over_controls,
    own_rows_told,
    tuned_by_host,
    unequal,
    without_weights,
)
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
    is_silent,
    learned,
    left_open,
    side_of,
)
from fedjax_post.report.position.drills import mean_losses
from fedjax_post.report.position.ladder import Cell, Ladder, comparable, least_row, of_kind
from fedjax_post.report.position.leaks import is_own, is_plain
from fedjax_post.report.position.rules import gate, numbers, points, unreadable
from fedjax_post.report.position.statistics import share_interval
from fedjax_post.report.position.thresholds import CEILING, RARE

_CEILING = f"{100 * CEILING.value:.0f} %"
_NO_GAIN = "no open method was shown to gain over one client alone and over its start"
_SAMPLED = "; a sample of the corpus, so that more may stand in it"


class Evidence(NamedTuple):
    """The contrasts of a hypothesis on a ladder."""

    contrasts: list[Contrast]
    shown: Shown | None  # None if nothing can be decided
    lacking: str  # why not
    numbers: list[str]
    otherwise: str = "its interval allows both"  # why it is undecided if no p passes
    untried: str = ""  # why the absence of an advantage cannot be concluded


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
        lacking = f"both sides reach {_CEILING}"
    shown = None if lacking or not usable else join_fn(usable)
    return Evidence(list(contrasts), shown, lacking, [*lines, *told])


def privacy(ladder: Ladder) -> Evidence:
    """Returns the evidence on H1: what methods that ask nothing in training gain by the target.

    A method that learned nothing says nothing of the target's worth, and nor does one whose control
    is at the ceiling.
    """
    silent = [cell for cell in comparable(ladder, "closed") if is_silent(cell)]
    found, missing = over_controls(ladder, silent)
    each = list(zip(silent, found, strict=True))
    counted = [c for cell, c in each if learned(cell) and c.can_lead]
    told = [
        *(f"learned nothing: {cell.label}" for cell in silent if not learned(cell)),
        *(f"its control reaches {_CEILING}: {cell.label}" for cell, c in each if not c.can_lead),
        *own_rows_told(ladder),
    ]
    lacking = _unreadable(ladder) or _missing(missing)
    if not silent:
        lacking = "no closed-side method that asks nothing in training"
    elif not lacking and not counted:
        lacking = "no method that asks nothing in training could show a gain"
    return _judged(counted, any_ahead, lacking=lacking, told=told)


def utility(ladder: Ladder) -> Evidence:
    """Returns the evidence on H3: the best open method against the best that uses the target."""
    return _led(ladder, without_weights(ladder), "the best rival")


def service(ladder: Ladder) -> Evidence:
    """Returns the evidence on H9: the best open method against fine-tuning by the host."""
    return _led(ladder, tuned_by_host(ladder), "the best tuning by the host")


def _led(ladder: Ladder, sides: Contenders, name: str) -> Evidence:
    """Returns the evidence on whether the best open method leads the best of its rivals.

    Only one that was shown to gain can be ahead. That none is takes all of them into account.
    """
    every = [*sides.held, *sides.others]
    first = _compared(ladder, sides, name, sides.held or every)
    lacking = _unreadable(ladder) or _missing(dict.fromkeys(sides.missing))
    if not comparable(ladder, "open") or not comparable(ladder, "closed"):
        lacking = "no scored cell of one side"
    elif not lacking and sides.unscored:
        lacking = f"rivals without a score: {', '.join(sides.unscored)}"
    elif not lacking and (open_ranks := left_open([*every, *sides.rivals])):
        lacking = f"a host left the rank of labels open: {', '.join(open_ranks)}"
    lacking = lacking or first.lacking
    told, untried, otherwise = [*sides.told, *first.told], first.no_lag, first.no_lead
    contrasts = [first.contrast]
    if not sides.held:
        otherwise = _NO_GAIN
        told.append(f"{_NO_GAIN}, so that none can be ahead")
        lacking = lacking or ("" if leads_start(ladder, sides, first.rival) else _NO_GAIN)
    elif sides.others:
        second = _compared(ladder, sides, name, every)
        untried = untried or second.lacking or second.no_lag
        if not second.lacking and second.contrast.name != first.contrast.name:
            contrasts.append(second.contrast._replace(can_lead=False))
            otherwise = otherwise or "an open method that was not shown to gain may not be behind"
    if not sides.held or first.no_lead:
        contrasts[0] = first.contrast._replace(can_lead=False)
    if off := [cell.label for cell in off_budget(ladder)]:
        told.append(f"spending differs from the budget: {', '.join(off)}")
    found = _judged(contrasts, any_ahead, lacking=lacking, told=told)
    return found._replace(untried=untried, otherwise=otherwise or found.otherwise)


class _Compared(NamedTuple):
    """The best of some open methods beside its best rival."""

    contrast: Contrast
    rival: Side
    lacking: str  # why they cannot be compared
    no_lead: str  # why it cannot be said that the open one leads
    no_lag: str  # why it cannot be said that it does not
    told: list[str]


def _compared(ladder: Ladder, sides: Contenders, name: str, cells: Sequence[Cell]) -> _Compared:
    """Returns the comparison of the best of some open methods with the best of their rivals."""
    best = best_of("the best open method", cells)
    rival = best_of(name, sides.rivals, seeds=best.scores or None)
    named = lambda side: f"{side.name} ({', '.join(side.chosen) or 'none'})"
    contrast = less(f"{named(best)} less {named(rival)}", best, rival, least=least_row(ladder))
    no_lead, no_lag = (
        unequal(ladder, sides, best, rival, open_leads=leads) for leads in (True, False)
    )
    told = left_told(best, rival)
    return _Compared(contrast, rival, best.lacking or rival.lacking, no_lead, no_lag, told)


def autonomy(ladder: Ladder) -> Evidence:
    """Returns the evidence on H2: losses by faults that can hurt either side."""
    return _losses(ladder, losses.CHANGES)


def exclusion(ladder: Ladder) -> Evidence:
    """Returns the evidence on H8: losses of the federation where some clients are shut out."""
    return _losses(ladder, losses.EXCLUSIONS)


def licence_barrier(ladder: Ladder) -> Evidence:
    """Returns the evidence on 'a licence of open weights is a barrier to taking part'."""
    rows = losses.measured(ladder, "open", {"excluded_weights_licence"})
    lost = mean_losses(rows)
    lacking = "" if lost else "no drill in which a licence of open weights shuts clients out"
    contrast = Contrast("loss of open methods without those clients", lost, least_row(ladder))
    return _judged([contrast] if lost else [], any_ahead, lacking=lacking)


def data_openness(ladder: Ladder) -> Evidence:
    """Returns the evidence on H6: tuned methods on two bases that share no training data."""
    cells = {cell.method: cell for cell in ladder.cells if cell.kind in ("open", "closed")}
    facts = ladder.facts.get("other_bases") or {}
    contrasts, told = [], []
    for base, others in ladder.bases.items():
        shared = (facts.get(base) or {}).get("shares_data")
        pairs = [
            less(f"{o.label}, this base less {base}", side_of(cells[o.method]), side_of(o))
            for o in others
            if o.method in cells and (learned(cells[o.method]) or learned(o))
        ]
        pairs = [pair._replace(least=least_row(ladder)) for pair in pairs]
        if shared is False:
            contrasts += pairs
        else:
            why = "shares data with this one" if shared else "may share data with this one"
            told += [
                f"{p.name}: {points(p.differences)} (not counted: {base} {why})" for p in pairs
            ]
    found, audit_told = _contaminated(ladder)
    lacking = _unreadable(ladder) or found if contrasts else "no second base of other data"
    return _judged(contrasts, all_alike, lacking=lacking, told=[*told, *audit_told])


def updates(ladder: Ladder) -> Evidence:
    """Returns the evidence on H7: what attacks recover beyond guessing.

    A wire on which nothing is trained, or on which nothing is learned, shows nothing of updates
    that anybody would send.
    """
    plain = [row for row in ladder.facts.get("attacks") or [] if is_plain(row)]
    useful = {cell.method for cell in of_kind(ladder, "open") if learned(cell)}
    rows = [row for row in plain if is_own(row) and row.get("method") in useful]
    empty = [row for row in rows if 0 in numbers(row.get("tokens"))]
    lacking = "" if plain else "no attack was run"
    if plain and not rows:
        lacking = "no attack was run on the wire of a cell that learned"
    elif empty:
        lacking = f"no private token was there to be recovered from {empty[0].get('wire')}"
    told = [
        f"{one.name}: {points(one.differences)} (not counted: no cell that learned sends it)"
        for one in (_recovered(row) for row in plain if row not in rows)
    ]
    return _judged([_recovered(row) for row in rows], any_ahead, lacking=lacking, told=told)


MEASURES: Mapping[str, Callable[[Ladder], Evidence]] = {
    "H1": privacy,
    "H2": autonomy,
    "H3": utility,
    "H6": data_openness,
    "H7": updates,
    "H8": exclusion,
    "H9": service,
}


def _losses(ladder: Ladder, pairs: losses.Pairs) -> Evidence:
    """Returns the evidence of faults of a host, each with its like of open weights."""
    contrasts = losses.contrasts(ladder, pairs, least=least_row(ladder))
    lacking = losses.missing(ladder, pairs) or _unreadable(ladder)
    if not lacking and not contrasts:
        lacking = "no fault of a host was measured together with its like of open weights"
    absent = losses.not_drilled(ladder, pairs)
    found = _judged(contrasts, any_ahead, lacking=lacking, told=absent)
    found = found._replace(untried="not all faults were drilled" if absent else "")
    weak = bool(contrasts) and all(c.below is None for c in contrasts)
    return found._replace(otherwise=losses.UNHURT) if weak else found


def _recovered(row: Mapping[str, Any]) -> Contrast:
    """Returns the contrast of an attack, whose spread is at least one private token."""
    most = max(numbers(row.get("tokens")), default=0.0)
    wire = row.get("wire", "updates")
    return Contrast(
        f"{row.get('attack')} on {row.get('method')}, {wire}: recovered less guessed",
        [
            a - b
            for a, b in zip(numbers(row.get("recovered")), numbers(row.get("guess")), strict=False)
        ],
        1 / most if most else 0.0,
    )


def _unreadable(ladder: Ladder) -> str:
    """Returns why scores cannot be compared; "" if they can."""
    found: dict[int, set[str]] = {}
    for cell in ladder.cells:
        for seed, run in cell.runs.items():
            found.setdefault(seed, set()).add(run.summary.get("heldout_digest", ""))
    differ = any(len(digests - {""}) > 1 for digests in found.values())
    return "cells of a seed were scored on different rows" if differ else unreadable(gate(ladder))


def _contaminated(ladder: Ladder) -> tuple[str, list[str]]:
    """Returns why scores cannot be read, unless all of the corpus was searched, and the audit."""
    audit = ladder.facts.get("audit") or {}
    found = audit.get("contamination") or {}
    unknown = "whether the base has read the evaluation's rows is unknown"
    if audit.get("refused"):
        return unknown, [f"the audit was refused: {audit['refused']}"]
    share, count = found.get("rows"), found.get("num_rows")
    if share is None or not count:
        return unknown, ["missing: an audit of the corpus, with the number of rows"]
    low, high = share_interval(round(share * count), count)
    told = (
        f"{round(share * count)} of {count} evaluation rows stand in the "
        f"{found.get('num_documents', 'unknown number of')} documents that were searched "
        f"({100 * low:.1f} to {100 * high:.1f} %)"
    )
    if low > RARE.value:
        return "the corpus contains rows of the evaluation", [told]
    sampled = audit.get("sampled", True)
    return unknown if sampled else "", [told + (_SAMPLED if sampled else "")]


def _missing(controls: Sequence[str] | Mapping[str, Any]) -> str:
    return f"control missing: {'; '.join(dict.fromkeys(controls))}" if controls else ""
