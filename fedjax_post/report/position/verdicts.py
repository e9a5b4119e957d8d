"""The verdicts on H1 to H8: pure functions of a ladder's numbers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_post.report.position.claims import CEILING, CLAIMS, Claim
from fedjax_post.report.position.evidence import data_openness, licence, methods_open, updates
from fedjax_post.report.position.ladder import (
    TIERS,
    Cell,
    Ladder,
    Run,
    accuracy,
    asks,
    disclosed,
    if_hosted,
    of_kind,
    over_seeds,
)
from fedjax_post.report.position.rules import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    ahead,
    best,
    count,
    decide,
    gained,
    gate,
    hit,
    losses,
    percent,
    points,
    unreadable,
)


class Verdict(NamedTuple):
    """A claim and the finding on it."""

    claim: Claim
    finding: Finding


def verdicts(ladder: Ladder) -> list[Verdict]:
    """Returns the verdicts on H1 to H8 for a ladder."""
    rules = (
        *(privacy, autonomy, utility, methods_open),
        *(licence, data_openness, updates, exclusion),
    )
    return [Verdict(claim, rule(ladder)) for claim, rule in zip(CLAIMS, rules, strict=True)]


def privacy(ladder: Ladder) -> Finding:
    """Returns the finding on H1: private tokens that leave the federation, by method."""
    closed, free = of_kind(ladder, "closed"), of_kind(ladder, "open")
    asking = [cell for cell in closed if _every(cell, if_hosted, lambda tokens: tokens > 0)]
    silent = [cell for cell in closed if _every(cell, if_hosted, lambda tokens: tokens == 0)]
    kept = [cell for cell in free if _every(cell, disclosed, lambda tokens: tokens == 0)]
    leaking = [cell for cell in free if _every(cell, disclosed, lambda tokens: tokens > 0)]
    readable = not unreadable(gate(ladder))
    works = {cell.method: decide(gained(cell)) if readable else UNDECIDED for cell in silent}
    unknown = len(asking) + len(silent) < len(closed) or len(kept) + len(leaking) < len(free)
    if leaking or SUPPORTED in works.values():
        verdict = NOT_SUPPORTED
    elif not closed or not free or unknown or UNDECIDED in works.values():
        verdict = UNDECIDED
    else:
        verdict = SUPPORTED if asking else NOT_SUPPORTED
    told = []
    if closed and free:
        told.append(
            f"{len(asking)} of {len(closed)} closed-side methods show private tokens to whoever "
            f"hosts the target; {len(leaking)} of {len(free)} open methods show any to an "
            "outside party"
        )
    told += [_tokens_told(cell) for cell in (*closed, *free, *of_kind(ladder, "baseline"))]
    told += [
        f"{cell.label} shows no host anything while it learns, though in use its questions go to "
        f"one; that it gains on the base is {works[cell.method]}: {points(gained(cell))}"
        for cell in silent
    ]
    return Finding(verdict, told or ["missing: no cell of the ladder is finished"])


def autonomy(ladder: Ladder) -> Finding:
    """Returns the finding on H2: losses when the provider stops, changes, throttles or refuses."""
    rows = [row for row in ladder.facts.get("drills") or [] if not _shuts_out(row)]
    closed, free = costs(ladder, rows, "closed"), costs(ladder, rows, "open")
    if not closed or not free:
        verdict = UNDECIDED
    elif False in closed.values() or True in free.values():
        verdict = NOT_SUPPORTED
    else:
        verdict = UNDECIDED if None in (*closed.values(), *free.values()) else SUPPORTED
    told = [_counted(closed, free, "in a drill"), *map(drill_told, rows)]
    return Finding(verdict, told if rows else ["missing: no drill was run"])


def utility(ladder: Ladder) -> Finding:
    """Returns the finding on H3: the best open method against the best without the weights."""
    without = best((*of_kind(ladder, "closed"), *of_kind(ladder, "baseline")))
    within = best(of_kind(ladder, "open"))
    verdict, told = UNDECIDED, []
    for tier in TIERS:
        top = best(cell for cell in ladder.cells if cell.tier == tier)
        if top:
            told.append(f"best at {tier}: {top.label}, {percent(accuracy(top))}")
    if within and without:
        gap = ahead(within, without)
        solved = min(_mean(within), _mean(without)) >= CEILING
        verdict = UNDECIDED if solved else decide(gap)
        told.insert(0, f"{within.label} less {without.label}, seed by seed: {points(gap)}")
    why = unreadable(gate(ladder))
    if why:
        return Finding(UNDECIDED, [why, *told])
    return Finding(verdict, told or ["missing: no cell of the ladder is scored"])


def exclusion(ladder: Ladder) -> Finding:
    """Returns the finding on H8: losses when some clients may not use a closed model."""
    rows = exclusions(ladder)
    closed = costs(ladder, rows, "closed", by_score=True)
    free = costs(ladder, rows, "open", by_score=True)
    if not closed or not free:
        verdict = UNDECIDED
    elif True in free.values() or set(closed.values()) == {False}:
        verdict = NOT_SUPPORTED
    else:
        decided = True in closed.values() and None not in free.values()
        verdict = SUPPORTED if decided else UNDECIDED
    told = [_counted(closed, free, "when clients were shut out"), *map(drill_told, rows)]
    return Finding(verdict, told if rows else ["missing: no client was shut out"])


def exclusions(ladder: Ladder) -> list[Mapping[str, Any]]:
    """Returns the drills that exclude clients, from both lists in `ladder.json`."""
    drills = [row for row in ladder.facts.get("drills") or [] if _shuts_out(row)]
    return [*(ladder.facts.get("excluded") or []), *drills]


def drill_told(row: Mapping[str, Any]) -> str:
    """Returns a drill's outcome as one line of text."""
    can = [
        f"{'can' if row[key] else 'cannot'} {verb}"
        for key, verb in (("can_train", "train"), ("can_serve", "serve"))
        if row.get(key) is not None
    ]
    lost = losses(row)
    parts = [f"loses {points(lost)}" if lost else "loss of score missing", *can]
    note = f" ({row['note']})" if row.get("note") else ""
    return f"{row.get('drill')}, {row.get('method')}: {', '.join(parts)}{note}"


def _every(cell: Cell, value_fn: Callable[[Run], float | None], test: Callable) -> bool:
    values = [value_fn(run) for run in cell.runs.values()]
    return all(value is not None and test(value) for value in values)


def _mean(cell: Cell) -> float:
    found = accuracy(cell)
    return found.mean if found else 0.0


def _tokens_told(cell: Cell) -> str:
    sent = over_seeds(cell, disclosed)
    left = f"{count(sent)} private tokens left the federation"
    if not asks(cell):
        return f"{cell.label} ({cell.tier}), which asks no host: {left}"
    places = {run.inference or "a place not told" for run in cell.runs.values()}
    told = f"{cell.label} ({cell.tier}), inference at {', '.join(sorted(places))}: {left}"
    if "provider" in places and not (sent and sent.mean):
        return told
    if "provider" in places:
        return f"{told}; held by the clients, the target would have shown nobody the same queries"
    seen = count(over_seeds(cell, if_hosted))
    return f"{told}; had a provider hosted the target, the same run would have shown it {seen}"


def costs(
    ladder: Ladder, rows: list[Mapping[str, Any]], kind: str, *, by_score: bool = False
) -> dict[str, bool | None]:
    """Returns whether drills cost each method of a kind something; None: undecided.

    Scores of closed methods are used only if the base passed the gate.

    Args:
      ladder: with the kinds of methods.
      rows: of drills.
      kind: open or closed.
      by_score: whether only a loss of score counts, not the loss of an ability.
    """
    readable = kind == "open" or not unreadable(gate(ladder))
    own = [cell for cell in ladder.cells if cell.kind == kind]
    known = {name for cell in own for name in (cell.method, cell.label)}
    found: dict[str, list[bool | None]] = {}
    for row in rows:
        if row.get("method") in known:
            found.setdefault(row["method"], []).append(
                hit(row, readable=readable, by_score=by_score)
            )
    return {m: True if True in h else None if None in h else False for m, h in found.items()}


def _shuts_out(row: Mapping[str, Any]) -> bool:
    return str(row.get("drill")).startswith("excluded")


def _counted(closed: Mapping[str, bool | None], free: Mapping[str, bool | None], when: str) -> str:
    """Returns how many methods of each side lost something, as text."""
    count_of = lambda hits: f"{sum(hit is True for hit in hits.values())} of {len(hits)}"
    lost = f"{count_of(closed)} closed-side methods lost something {when}"
    return f"{lost}, {count_of(free)} open methods did"
