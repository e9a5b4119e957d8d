"""How evidence becomes a verdict: the same rules for every claim, whichever way it turns out.

A number that varies with the seed decides by the 95 % interval of its mean (Student's t), so
that one seed decides nothing. What does not vary, such as no token against all of them,
decides by itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.report.comparison import Interval, interval
from fedjax_post.report.position.claims import MARGIN
from fedjax_post.report.position.ladder import Cell, Ladder, accuracy

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided here"
UNPROMPTED = "undecided: this base cannot be prompted"
_PROMPTED, _RECOVERED = 0.15, 0.5  # what a base must show before closed methods are judged on it
_GAIN = 0.05  # what LoRA must gain for a share of it to mean anything


class Finding(NamedTuple):
    """What evidence comes to, and the numbers that say so."""

    verdict: str
    numbers: list[str]


class Gate(NamedTuple):
    """Whether the base can be prompted at all, so that closed methods have a chance."""

    passed: bool | None  # None: not measured
    told: str


def gate(ladder: Ladder) -> Gate:
    """Returns whether the closed side can be judged on this base.

    It can where the manual prompt is 15 points above chance and a soft prompt trained by
    gradients recovers half of LoRA's gain; the file's own verdict may only be stricter. Where
    LoRA gains less than five points there is nothing to recover, and nothing is decided.
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
    """Returns why closed-side scores cannot be read, or nothing where they can."""
    if found.passed:
        return ""
    unmeasured = "undecided: whether this base can be prompted was not measured"
    return unmeasured if found.passed is None else UNPROMPTED


def decide(advantages: Sequence[float], *, margin: float = MARGIN) -> str:
    """Returns the verdict on 'there is an advantage', from one number a seed.

    | the 95 % interval of the mean | |
    | --- | --- |
    | lies above 0 | supported |
    | reaches 0 or below, and ends below the margin | not supported |
    | is wider, or there is one seed only | undecided here |
    """
    if len(advantages) < 2:
        return UNDECIDED
    mean, half = interval(advantages)
    if mean - half > 0:
        return SUPPORTED
    return NOT_SUPPORTED if mean + half < margin else UNDECIDED


def all_of(parts: Iterable[str]) -> str:
    """Returns the verdict on a claim that needs every part."""
    parts = list(parts)
    if NOT_SUPPORTED in parts:
        return NOT_SUPPORTED
    return SUPPORTED if parts and set(parts) == {SUPPORTED} else UNDECIDED


def hit(row: Mapping[str, Any], *, readable: bool, by_score: bool = False) -> bool | None:
    """Returns whether a drill cost a method something; None if that is not decided.

    Being unable to train or to serve decides by itself, unless it is by score alone; a loss of
    exactly 0 as well; any other loss of score by its interval, where scores can be read.
    """
    if not by_score and False in (row.get("can_train"), row.get("can_serve")):
        return True
    lost = losses(row)
    if lost and not any(lost):
        return False
    return {SUPPORTED: True, NOT_SUPPORTED: False}.get(decide(lost)) if readable else None


def losses(row: Mapping[str, Any]) -> list[float]:
    """Returns a drill's loss of exact match, a number for each seed: `lost`, or before - after."""
    if row.get("lost") is not None:
        return numbers(row["lost"])
    before, after = numbers(row.get("before")), numbers(row.get("after"))
    return [b - a for b, a in zip(before, after, strict=False)]


def numbers(value: Any) -> list[float]:
    """Returns the numbers in a number or a list of them; of anything else, none."""
    values = value if isinstance(value, list) else [value]
    kept = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return kept if len(kept) == len(values) else []


def best(cells: Iterable[Cell]) -> Cell | None:
    """Returns the cell of the highest mean exact match, of those that were scored."""
    scored = [(found.mean, cell) for cell in cells if (found := accuracy(cell))]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def ahead(first: Cell, second: Cell) -> list[float]:
    """Returns the first cell's exact match less the second's, for the seeds that both have."""
    both = [(first.runs[s].exact_match, second.runs[s].exact_match)
            for s in first.runs if s in second.runs]  # fmt: skip
    return [a - b for a, b in both if a is not None and b is not None]


def gained(cell: Cell) -> list[float]:
    """Returns what a cell's runs gained on the base that they began with, seed by seed."""
    pairs = [(run.exact_match, run.base) for run in cell.runs.values()]
    return [a - b for a, b in pairs if a is not None and b is not None]


def points(values: Sequence[float]) -> str:
    """Returns a mean difference in percentage points, with its interval where there is one."""
    if not values:
        return "missing"
    mean, half = interval(values)
    told = "1 seed" if len(values) == 1 else f"{len(values)} seeds"
    return f"{100 * mean:+.1f}{_half(100 * half, '.1f')} points ({told})"


def percent(value: float | Interval | None) -> str:
    """Returns a share as a percentage, with its interval where there is one."""
    if value is None:
        return "missing"
    if isinstance(value, Interval):
        return f"{100 * value.mean:.1f}{_half(100 * value.half, '.1f')} %"
    return f"{100 * value:.1f} %"


def count(value: Interval | None) -> str:
    """Returns a mean count with thousands apart, and its interval where seeds differ."""
    if value is None:
        return "missing"
    half = "" if not value.half else _half(value.half, ",.0f")
    return f"{value.mean:,.0f}{half}"


def _half(half: float, form: str) -> str:
    return "" if math.isnan(half) else f" ± {format(half, form)}"
