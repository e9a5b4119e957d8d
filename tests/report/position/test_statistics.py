"""Tests over seeds agree with scipy, with closed forms, and with simulation."""

import numpy as np
import pytest
from scipy import stats

from fedjax_post.report.comparison import interval
from fedjax_post.report.position.statistics import (
    above,
    deviation,
    holm,
    power,
    quantile,
    share_interval,
    upper_tail,
)


@pytest.mark.parametrize("freedom", [1, 2, 4, 29])
def test_students_t_is_scipys(freedom):
    for t in (-3.0, 0.0, 0.7, 12.0, 1e4):
        assert upper_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-10)
    for tail in (0.025, 0.05 / 12, 1e-5):
        assert quantile(tail, freedom) == pytest.approx(stats.t.isf(tail, freedom), rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("spread", [0.02, 0.05, 0.3])
def test_power_is_that_of_the_noncentral_t(count, spread):
    shift, freedom = 0.05 * np.sqrt(count) / spread, count - 1
    limit = stats.t.isf(0.025, freedom)
    tails = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
    assert power(0.05, spread, count, level=0.05) == pytest.approx(tails, abs=1e-7)


def test_three_seeds_with_a_spread_of_five_points_find_five_points_in_18_of_100():
    assert power(0.05, 0.05, 3, level=0.05) == pytest.approx(0.18, abs=0.005)
    assert power(0.05, 0.05, 1, level=0.05) == 0
    assert power(0.05, 0.0, 3, level=0.05) == 1


def test_a_p_below_five_percent_is_an_interval_on_one_side():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = list(rng.normal(0.03, 0.02, size=3))
        mean, half = interval(values)
        assert (above(values, 0) < 0.05) == (mean - half > 0)


def test_one_seed_shows_nothing_and_equal_seeds_have_the_spread_of_a_row():
    assert above([0.9], 0) == 1
    assert above([0.1, 0.1], 0) == 1  # nothing says how far they could differ
    assert above([0.1, 0.1], 0, least=1e-9) < 1e-6
    assert deviation([0.1, 0.1], 1 / 240) == 1 / 240
    assert above([0.002, 0.002], 0, least=1 / 20) > 0.5


def test_holm_is_the_procedure_and_stops_at_the_first_failure():
    found = holm({"a": 0.012, "b": 0.001, "c": 0.04, "d": 0.03}, 0.05)
    assert found["b"] == (0.0125, True)
    assert found["a"] == (pytest.approx(0.05 / 3), True)
    assert found["d"] == (0.025, False)
    assert found["c"] == (0.05, False)  # below its level, but after a failure


def test_holm_keeps_false_findings_among_several_at_alpha():
    rng, draws, false = np.random.default_rng(1), 4000, 0
    p = 2 * stats.t.sf(np.abs(stats.t.rvs(4, size=(draws, 6), random_state=rng)), 4)
    for row in p:
        false += any(passed for _, passed in holm(dict(enumerate(row)), 0.05).values())
    assert false / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize(("found", "count"), [(7, 480), (0, 240), (240, 240)])
def test_shares_have_wilsons_interval(found, count):
    wanted = stats.binomtest(found, count).proportion_ci(method="wilson")
    assert share_interval(found, count) == pytest.approx((wanted.low, wanted.high), abs=1e-7)
