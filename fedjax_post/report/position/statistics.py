"""Tests of a mean difference over seeds, in numpy: Student's t, its power, and Holm's correction.

A difference is one number for each seed: two cells' scores on the same held-out rows. The mean
over rows of the paired differences of items equals the difference of the two means, so that items
are paired within a seed, and the spread over seeds contains the chance of items. Both
distributions are integrated numerically; tests/report/position/test_statistics.py compares them
with scipy.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)
_erf = np.vectorize(math.erf, otypes=[float])


def upper_tail(t: float, freedom: int) -> float:
    """Returns the probability that Student's t exceeds a value, in [0, 1].

    With t = sqrt(n) tan(x), the density in x is proportional to cos(x)^(n - 1).

    Args:
      t: the value; may be infinite.
      freedom: degrees of freedom, at least 1.
    """
    if t < 0:
        return 1 - upper_tail(-t, freedom)
    low, high = math.atan(t / math.sqrt(freedom)), math.pi / 2
    x = low + (high - low) * (_NODES + 1) / 2
    area = (high - low) / 2 * float(_WEIGHTS @ np.cos(x) ** (freedom - 1))
    beta = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return area * math.exp(beta) / math.sqrt(math.pi)


@lru_cache(maxsize=4096)
def quantile(tail: float, freedom: int) -> float:
    """Returns the value that Student's t exceeds with probability `tail`, in (0, 0.5]."""
    low, high = 0.0, 1.0
    while upper_tail(high, freedom) > tail:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def power(gain: float, deviation: float, count: int, *, level: float) -> float:
    """Returns the probability that a two-sided t test finds a true difference, in [0, 1].

    It is the noncentral t distribution: given s, the root of chi squared over its freedom, the
    test finds it if |Z + shift| > quantile * s.

    Args:
      gain: the true mean difference.
      deviation: standard deviation over seeds, at least 0.
      count: number of seeds.
      level: of the test, in (0, 1).
    """
    if count < 2:
        return 0.0
    if deviation <= 0:
        return 1.0
    freedom = count - 1
    limit, shift = quantile(level / 2, freedom), gain * math.sqrt(count) / deviation
    s, weight = _chi(freedom)
    normal = lambda x: 0.5 * (1 + _erf(x / math.sqrt(2)))
    return float(weight @ (normal(shift - limit * s) + normal(-shift - limit * s)))


@lru_cache(maxsize=256)
def _chi(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes and weights of the root of chi squared over its freedom."""
    high = 1 + 12 / math.sqrt(2 * freedom)
    s = high * (_NODES + 1) / 2
    log = (freedom - 1) * np.log(s) - freedom * s**2 / 2
    density = np.exp(log - log.max()) * _WEIGHTS
    return s, density / density.sum()


def above(values: Sequence[float], limit: float, *, least: float = 0.0) -> float:
    """Returns twice the one-sided p of 'the mean is not above a limit', at most 1.

    Twice, so that it is below 0.05 exactly if the 95 % interval lies above the limit. Values
    without any spread show nothing, because nothing says how far they could differ.

    Args:
      values: one for each seed.
      limit: what the mean is compared with.
      least: the spread is taken to be no smaller; see `deviation`.
    """
    count = len(values)
    if count < 2:
        return 1.0
    error = deviation(values, least) / math.sqrt(count)
    excess = sum(values) / count - limit
    if error == 0:
        return 1.0
    return min(1.0, 2 * upper_tail(excess / error, count - 1))


def deviation(values: Sequence[float], least: float = 0.0) -> float:
    """Returns the standard deviation over seeds, no smaller than `least`; nan for one seed.

    Scores are counts of rows. Seeds that agree to the row do not show that there is no spread.
    """
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return max(math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)), least)


def holm(p: Mapping[str, float], alpha: float) -> dict[str, tuple[float, bool]]:
    """Returns the level at which Holm's correction judges each p, and whether it passes.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6, 1979: the i-th smallest of m is judged at alpha / (m - i), i from 0, and nothing
    passes after the first that does not.

    >>> holm({"a": 0.07, "b": 0.02, "c": 0.001}, 0.06)
    {'c': (0.02, True), 'b': (0.03, True), 'a': (0.06, False)}
    """
    found, passing = {}, True
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        level = alpha / (len(p) - rank)
        passing = passing and p[name] <= level
        found[name] = (level, passing)
    return found


def share_interval(found: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share by Wilson's formula, in [0, 1].

    >>> tuple(round(100 * bound, 1) for bound in share_interval(7, 480))
    (0.7, 3.0)
    """
    z = 1.959964
    share, size = found / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / size
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / size
    return max(0.0, centre - half), min(1.0, centre + half)
