"""The rules that turn evidence into verdicts; they are the same for every claim and verdict.

A number that varies with the seed is judged by the 95 % interval of its mean (Student's t), so a
single seed decides nothing. A fact that does not vary with the seed, such as that no token left
the federation, decides by itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.report.comparison import Interval, interval
from fedjax_post.report.position.claims import MARGIN
from fedjax_post.report.position.ladder import Cell, Ladder, accuracy

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided here"
UNPROMPTED = "undecided: this base cannot be prompted"
# What a base must reach before closed methods are judged on it: exact match of the manual prompt
# above chance, and the soft prompt's share of LoRA's gain
_PROMPTED, _RECOVERED = 0.15, 0.5
_GAIN = 0.05  # least gain of LoRA for which a share of it is meaningful


class Finding(NamedTuple):
    """A verdict, and the numbers that support it."""

    verdict: str
    numbers: list[str]


class Gate(NamedTuple):
    """Whether the base can be prompted at all, so that closed methods can work."""

    passed: bool | None  # None: not measured
    told: str


def gate(ladder: Ladder) -> Gate:
    """Returns whether closed methods can be judged on this base.

    They can if the manual prompt is 15 points above chance and a soft prompt trained by gradients
    recovers half of LoRA's gain; `passed` in the file can only make this stricter. If LoRA gains
    less than five points, there is nothing to recover, and the gate counts as not measured.
    """
    found = ladder.facts.get("gate")
    if not found:
        return Gate(None, "not measured: ladder.json has no gate")
    manual, chance = found.get("manual_prompt"), found.get("chance")
    share = found.get("soft_prompt_share")
    if manual is None or chance is None or share is None:
        parts = {"manual_prompt": manual, "chance": chance, "soft_prompt_share": share}
        lacking = [name for name, value in parts.items() if value is None]
        return Gate(None, f"not measured: the gate lacks {', '.join(lacking)}")
    if found.get("gain") is not None and found["gain"] < _GAIN:
        told = f"LoRA gains {100 * found['gain']:+.1f} points, too little to hold anything against"
        return Gate(None, f"not measured: {told}")
    high = round(manual - chance, 9) >= _PROMPTED
    follows = round(share, 9) >= _RECOVERED
    passed = high and follows and bool(found.get("passed", True))
    return Gate(
        passed,
        f"{'passed' if passed else 'failed'}: the manual prompt scores {percent(manual)}, "
        f"{100 * (manual - chance):+.1f} points from chance ({percent(chance)}; +15 are asked), "
        f"and a soft prompt trained by gradients recovers {percent(share)} of LoRA's gain "
        "(50 % are asked)",
    )


def unreadable(found: Gate) -> str:
    """Returns why scores of closed methods cannot be interpreted; "" if they can."""
    if found.passed:
        return ""
    unmeasured = "undecided: whether this base can be prompted was not measured"
    return unmeasured if found.passed is None else UNPROMPTED


def decide(advantages: Sequence[float], *, margin: float = MARGIN) -> str:
    """Returns the verdict on 'there is an advantage', from one number for each seed.

    | the 95 % interval of the mean | verdict |
    | --- | --- |
    | is above 0 | supported |
    | reaches 0 or below, and ends below the margin | not supported |
    | is wider, or there is only one seed | undecided here |
    """
    if len(advantages) < 2:
        return UNDECIDED
    mean, half = interval(advantages)
    if mean - half > 0:
        return SUPPORTED
    return NOT_SUPPORTED if mean + half < margin else UNDECIDED


def all_of(parts: Iterable[str]) -> str:
    """Returns the verdict on a claim that holds only if all its parts do."""
    parts = list(parts)
    if NOT_SUPPORTED in parts:
        return NOT_SUPPORTED
    return SUPPORTED if parts and set(parts) == {SUPPORTED} else UNDECIDED


def hit(row: Mapping[str, Any], *, readable: bool, by_score: bool = False) -> bool | None:
    """Returns whether a drill cost a method something; None if undecided.

    A method that can no longer train or serve has lost something, unless only scores count. A
    loss of exactly 0 for all seeds is none. Any other loss is judged by its interval, if scores
    can be interpreted.

    Args:
      row: of the drill, see `position.ladder`.
      readable: whether scores can be interpreted.
      by_score: whether only a loss of score counts.
    """
    if not by_score and False in (row.get("can_train"), row.get("can_serve")):
        return True
    lost = losses(row)
    if lost and not any(lost):
        return False
    return {SUPPORTED: True, NOT_SUPPORTED: False}.get(decide(lost)) if readable else None


def losses(row: Mapping[str, Any]) -> list[float]:
    """Returns a drill's loss of exact match for each seed: `lost`, or before - after."""
    if row.get("lost") is not None:
        return numbers(row["lost"])
    before, after = numbers(row.get("before")), numbers(row.get("after"))
    return [b - a for b, a in zip(before, after, strict=False)]


def numbers(value: Any) -> list[float]:
    """Returns a number, or a list of numbers, as a list; [] for any other value."""
    values = value if isinstance(value, list) else [value]
    kept = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return kept if len(kept) == len(values) else []


def best(cells: Iterable[Cell]) -> Cell | None:
    """Returns the scored cell with the highest mean exact match, or None."""
    scored = [(found.mean, cell) for cell in cells if (found := accuracy(cell))]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def ahead(first: Cell, second: Cell) -> list[float]:
    """Returns the first cell's exact match minus the second's, for the seeds that both have."""
    both = [(first.runs[s].exact_match, second.runs[s].exact_match)
            for s in first.runs if s in second.runs]  # fmt: skip
    return [a - b for a, b in both if a is not None and b is not None]


def gained(cell: Cell) -> list[float]:
    """Returns the gain in exact match of a cell's runs over the base model, for each seed."""
    pairs = [(run.exact_match, run.base) for run in cell.runs.values()]
    return [a - b for a, b in pairs if a is not None and b is not None]


def points(values: Sequence[float]) -> str:
    """Returns a mean difference in percentage points as text, with its interval if any."""
    if not values:
        return "missing"
    mean, half = interval(values)
    told = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
    return f"{100 * mean:+.1f}{_half(100 * half, '.1f')} points ({told})"


def percent(value: float | Interval | None) -> str:
    """Returns a share as a percentage text, with its interval if any."""
    if value is None:
        return "missing"
    if isinstance(value, Interval):
        return f"{100 * value.mean:.1f}{_half(100 * value.half, '.1f')} %"
    return f"{100 * value:.1f} %"


def count(value: Interval | None) -> str:
    """Returns a mean count as text, with its interval if seeds differ."""
    if value is None:
        return "missing"
    half = "" if not value.half else _half(value.half, ",.0f")
    return f"{value.mean:,.0f}{half}"


def _half(half: float, form: str) -> str:
    return "" if math.isnan(half) else f" ± {format(half, form)}"
