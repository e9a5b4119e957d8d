"""Whether a base can be prompted at all, and how numbers are written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.report.comparison import Interval, interval
from fedjax_post.report.position.controls import best_of, best_prompts
from fedjax_post.report.position.ladder import Cell, Ladder, accuracy
from fedjax_post.report.position.thresholds import LEAST_GAIN, PROMPTED, RECOVERED

UNPROMPTED = "this base cannot be prompted"


class Gate(NamedTuple):
    """Whether the base can be prompted at all, so that closed methods can work."""

    passed: bool | None  # None: not measured
    told: str


def gate(ladder: Ladder) -> Gate:
    """Returns whether closed methods can be judged on this base.

    They can if the manual prompt is 15 points above chance, and if a soft prompt trained by
    gradients, or the best of the manual prompts, recovers half of LoRA's gain; `passed` in the file
    can only make this stricter. If LoRA gains less than five points, there is nothing to recover,
    and the gate counts as not measured.
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
    if found.get("gain") is not None and found["gain"] < LEAST_GAIN.value:
        told = f"LoRA gains {100 * found['gain']:+.1f} points, too little to hold anything against"
        return Gate(None, f"not measured: {told}")
    high = round(manual - chance, 9) >= PROMPTED.value
    other = _share_of_manual(ladder, found)
    recovered = share if other is None else max(share, other)
    follows = round(recovered, 9) >= RECOVERED.value
    beside = "" if other is None else f", and the best manual prompt {percent(other)}"
    passed = high and follows and bool(found.get("passed", True))
    return Gate(
        passed,
        f"{'passed' if passed else 'failed'}: the manual prompt scores {percent(manual)}, "
        f"{100 * (manual - chance):+.1f} points from chance ({percent(chance)}; +15 are asked), "
        f"and a soft prompt trained by gradients recovers {percent(share)} of LoRA's gain{beside} "
        "(50 % are asked)",
    )


def _share_of_manual(ladder: Ladder, found: Mapping[str, Any]) -> float | None:
    """Returns the share of LoRA's gain that the best manual prompt recovers, if it is known."""
    seeds, prompts = found.get("seeds"), best_prompts(ladder)[0]
    best = best_of("the best manual prompt", prompts, seeds=seeds)
    lacks = best.lacking or not best.scores or len(best.scores) < len(seeds or ())
    if lacks or found.get("gain") is None:
        return None
    mean = sum(best.scores.values()) / len(best.scores)
    return (mean - found["manual_prompt"]) / found["gain"]


def unreadable(found: Gate) -> str:
    """Returns why scores of closed methods cannot be interpreted; "" if they can."""
    if found.passed:
        return ""
    unmeasured = "whether this base can be prompted was not measured"
    return unmeasured if found.passed is None else UNPROMPTED


def numbers(value: Any) -> list[float]:
    """Returns a number, or a list of numbers, as a list; [] for any other value."""
    values = value if isinstance(value, list) else [value]
    kept = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return kept if len(kept) == len(values) else []


def best(cells: Iterable[Cell]) -> Cell | None:
    """Returns the scored cell with the highest mean score, or None."""
    scored = [(found.mean, cell) for cell in cells if (found := accuracy(cell))]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


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


def p_value(p: float) -> str:
    """Returns the p of a test as text.

    >>> p_value(0.0123), p_value(1.2e-7)
    ('= 0.012', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


def count(value: Interval | None) -> str:
    """Returns a mean count as text, with its interval if seeds differ."""
    if value is None:
        return "missing"
    half = "" if not value.half else _half(value.half, ",.0f")
    return f"{value.mean:,.0f}{half}"


def _half(half: float, form: str) -> str:
    return "" if math.isnan(half) else f" ± {format(half, form)}"
