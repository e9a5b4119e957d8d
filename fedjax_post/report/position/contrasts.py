"""Contrasts: differences over seeds, and what they show of an advantage or of equality."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fedjax_post.report.position.controls import Side
from fedjax_post.report.position.statistics import above, deviation, power
from fedjax_post.report.position.thresholds import ALIKE, CEILING, GAIN, MARGIN


class Contrast(NamedTuple):
    """One difference, for each seed."""

    name: str
    differences: list[float]
    least: float = 0.0  # the spread is taken to be no smaller: one held-out row
    solved: bool = False  # whether both sides reach the ceiling, so that nothing can show


class Shown(NamedTuple):
    """What some contrasts show of a statement, before the correction for several statements."""

    p_for: float  # of the statement
    p_against: float
    deviation_for: float  # over seeds, of the contrast that decides for it
    deviation_against: float
    num_seeds: int
    tests: int  # number of contrasts among which one can decide


def less(name: str, first: Side, second: Side, *, least: float = 0.0) -> Contrast:
    """Returns the first side's score minus the second's, for the seeds that both have.

    Args:
      name: of the contrast.
      first: the side whose advantage is asked for.
      second: the side that it is compared with.
      least: one held-out row, as a share.
    """
    seeds = [seed for seed in first.scores if seed in second.scores]
    mean = lambda side: sum(side.scores[seed] for seed in seeds) / len(seeds)
    solved = bool(seeds) and min(mean(first), mean(second)) >= CEILING.value
    return Contrast(
        name, [first.scores[seed] - second.scores[seed] for seed in seeds], least, solved
    )


def any_ahead(contrasts: Sequence[Contrast]) -> Shown:
    """Returns what is shown of 'some contrast has an advantage', against 'none reaches the margin'.

    By Bonferroni for some, and by the weakest for none.
    """
    p_for = [1.0 if c.solved else above(c.differences, 0, least=c.least) for c in contrasts]
    none = [
        1.0 if c.solved else above([MARGIN.value - d for d in c.differences], 0, least=c.least)
        for c in contrasts
    ]
    return _joined(contrasts, p_for, none)


def all_alike(contrasts: Sequence[Contrast]) -> Shown:
    """Returns what is shown of 'all differences are below `ALIKE`', against 'some is above it'."""
    limit = ALIKE.value

    def apart(c: Contrast) -> float:
        signs = [[sign * d - limit for d in c.differences] for sign in (1, -1)]
        return min(above(values, 0, least=c.least) for values in signs)

    def within(c: Contrast) -> float:
        signs = [[limit - sign * d for d in c.differences] for sign in (1, -1)]
        return max(above(values, 0, least=c.least) for values in signs)

    found = _joined(contrasts, [apart(c) for c in contrasts], [within(c) for c in contrasts])
    return found._replace(
        p_for=found.p_against,
        p_against=found.p_for,
        deviation_for=found.deviation_against,
        deviation_against=found.deviation_for,
    )


def power_of(spread: float, num_seeds: int, level: float) -> float:
    """Returns the power for a true difference of `GAIN`, 0 without a spread to compute it from."""
    return 0.0 if math.isnan(spread) else power(GAIN.value, spread, num_seeds, level=level)


def _joined(contrasts: Sequence[Contrast], some: list[float], none: list[float]) -> Shown:
    spreads = [deviation(c.differences, c.least) for c in contrasts]
    decides = some.index(min(some))
    return Shown(
        min(1.0, len(some) * some[decides]),
        max(none),
        spreads[decides],
        math.nan if any(map(math.isnan, spreads)) else max(spreads),
        min(len(c.differences) for c in contrasts),
        len(contrasts),
    )
