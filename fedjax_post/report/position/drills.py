"""Rows of drills: which are measured, what they cost, and how they read."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_post.report.position.ladder import Ladder
from fedjax_post.report.position.rules import numbers, points

FORGOTTEN = "forgotten"  # the drill in which a client is unlearned, which is no fault
SHUT_OUT = ", those shut out"  # end of the name of a drill that is scored on their own rows


def rows_of(ladder: Ladder) -> list[Mapping[str, Any]]:
    """Returns the rows of all drills."""
    return [*(ladder.facts.get("drills") or []), *(ladder.facts.get("excluded") or [])]


def drill_of(row: Mapping[str, Any]) -> str:
    """Returns the name of a row's drill."""
    return str(row.get("drill"))


def is_measured(row: Mapping[str, Any], kind: str) -> bool:
    """Returns whether a drill's loss of score is a measurement, and no matter of definition.

    It is none where the record says so, where nothing can be trained or served afterwards, and
    on the rows of those who are shut out. Records that do not say so are of runs in which an open
    method ran undisturbed, so that its losses are all exactly 0.

    Args:
      row: of the drill, see `position.ladder`.
      kind: of the method: open or closed.
    """
    if str(row.get("drill")).endswith(SHUT_OUT) or not losses(row):
        return False
    if False in (row.get("can_train"), row.get("can_serve")):
        return False
    stated = row.get("by_definition")
    if stated is not None:
        return not any(stated if isinstance(stated, list) else [stated])
    return kind != "open" or any(losses(row))


def losses(row: Mapping[str, Any]) -> list[float]:
    """Returns a drill's loss of score for each seed: `lost`, or before - after."""
    if row.get("lost") is not None:
        return numbers(row["lost"])
    before, after = numbers(row.get("before")), numbers(row.get("after"))
    return [b - a for b, a in zip(before, after, strict=False)]


def losses_at_once(row: Mapping[str, Any]) -> list[float]:
    """Returns the loss for each seed before anything was trained: that in the end if none is known.

    A change that is told with its scores at once has them where faults begin, on either side.
    """
    before, after = numbers(row.get("at_fault")), numbers(row.get("at_change"))
    return [b - a for b, a in zip(before, after, strict=False)] if after else losses(row)


def is_known_at_once(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has the scores before anything was trained."""
    return bool(numbers(row.get("at_change")))


def mean_losses(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the mean over drills of the loss, for each seed that all of them have."""
    each = [losses(row) for row in rows]
    length = min(map(len, each), default=0)
    return [sum(values[i] for values in each) / len(each) for i in range(length)]


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
