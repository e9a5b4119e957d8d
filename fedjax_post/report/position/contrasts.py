"""Contrasts: differences over seeds, and what they show of an advantage or of equality."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

from fedjax_post.report.position.controls import Side
from fedjax_post.report.position.statistics import above, deviation, power
from fedjax_post.report.position.thresholds import ALIKE, CEILING, GAIN, MARGIN, POWER

MOST = 1000  # seeds, as a remedy for too few


class Contrast(NamedTuple):
    """One difference, for each seed."""

    name: str
    differences: list[float]
    least: float = 0.0  # the spread is taken to be no smaller: one held-out row
    can_lead: bool = True  # whether an advantage could show: the second side is below the ceiling
    below: float | None = MARGIN.value  # a mean below it is no advantage; None: nothing shows that

    @property
    def solved(self) -> bool:
        """Whether nothing can show."""
        return not self.can_lead and self.below is None


class Shown(NamedTuple):
    """What some contrasts show of a statement, before the correction for several statements."""

    p_for: float  # of the statement
    p_against: float
    p_small: float  # that what decides for it is below the margin nevertheless
    deviation_for: float  # over seeds, of the contrast that decides for it
    deviation_against: float
    name_for: str  # of the contrast that decides for it
    name_against: str
    num_seeds: int
    tests_for: int  # contrasts among which one can decide for it, by which its p is corrected
    tests_against: int  # 1 where all must show it


def less(name: str, first: Side, second: Side, *, least: float = 0.0) -> Contrast:
    """Returns the first side's score minus the second's, for the seeds that both have.

    Nothing is ahead of a side at the ceiling, so that only a first side that lies below it shows
    that it has no advantage. Two sides at the ceiling show nothing.

    Args:
      name: of the contrast.
      first: the side whose advantage is asked for.
      second: the side that it is compared with.
      least: one held-out row, as a share.
    """
    seeds = [seed for seed in first.scores if seed in second.scores]
    full = lambda side: sum(side.scores[seed] for seed in seeds) / len(seeds) >= CEILING.value
    capped = bool(seeds) and full(second)
    below = None if capped and full(first) else 0.0 if capped else MARGIN.value
    differences = [first.scores[seed] - second.scores[seed] for seed in seeds]
    return Contrast(name, differences, least, not capped, below)


def any_ahead(contrasts: Sequence[Contrast]) -> Shown:
    """Returns what is shown of 'some contrast has an advantage', against 'none reaches the margin'.

    By Bonferroni for some, over those that could be, and by the weakest for none.
    """
    some = [above(c.differences, 0, least=c.least) if c.can_lead else 1.0 for c in contrasts]
    none = [
        1.0 if c.below is None else above([c.below - d for d in c.differences], 0, least=c.least)
        for c in contrasts
    ]
    return _joined(contrasts, some, none, tests=sum(c.can_lead for c in contrasts))


def all_alike(contrasts: Sequence[Contrast]) -> Shown:
    """Returns what is shown of 'all differences are below `ALIKE`', against 'some is above it'."""
    limit = ALIKE.value

    def apart(c: Contrast) -> float:
        signs = [[sign * d - limit for d in c.differences] for sign in (1, -1)]
        return min(above(values, 0, least=c.least) for values in signs)

    def within(c: Contrast) -> float:
        signs = [[limit - sign * d for d in c.differences] for sign in (1, -1)]
        return max(above(values, 0, least=c.least) for values in signs)

    far, near = [apart(c) for c in contrasts], [within(c) for c in contrasts]
    found = _joined(contrasts, far, near, tests=len(contrasts))
    return found._replace(
        p_for=found.p_against,
        p_against=found.p_for,
        p_small=1.0,
        deviation_for=found.deviation_against,
        deviation_against=found.deviation_for,
        name_for=found.name_against,
        name_against=found.name_for,
        tests_for=found.tests_against,
        tests_against=found.tests_for,
    )


def power_of(spread: float, num_seeds: int, level: float) -> float:
    """Returns the power for a true difference of `GAIN`, 0 without a spread to compute it from."""
    return 0.0 if math.isnan(spread) else power(GAIN.value, spread, num_seeds, level=level)


def seeds_needed(spread: float, level: float) -> int | None:
    """Returns the least number of seeds whose power is `POWER`; None if `MOST` are too few.

    Args:
      spread: over seeds, as it was observed.
      level: of the test, in (0, 1).
    """
    enough = lambda num_seeds: power_of(spread, num_seeds, level) >= POWER.value
    if not enough(MOST):
        return None
    return bisect.bisect_left(range(MOST + 1), True, lo=2, key=enough)


def _joined(
    contrasts: Sequence[Contrast], some: list[float], none: list[float], *, tests: int
) -> Shown:
    spreads = [deviation(c.differences, c.least) for c in contrasts]
    decides, weakest = some.index(min(some)), none.index(max(none))
    tests = max(1, tests)
    return Shown(
        min(1.0, tests * some[decides]),
        none[weakest],
        none[decides],
        spreads[decides],
        math.nan if any(map(math.isnan, spreads)) else max(spreads),
        contrasts[decides].name,
        contrasts[weakest].name,
        min(len(c.differences) for c in contrasts),
        tests,
        1,
    )
