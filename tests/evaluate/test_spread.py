"""Spreads over clients against closed forms, and a test for every row of the module's table."""

import math

import numpy as np
import pytest

from fedjax_post.evaluate.spread import Spread, spread, spreads


def test_means_variance_and_index_are_their_closed_forms():
    """For scores 1 .. n with k examples for score k."""
    n = 20
    x = np.arange(1, n + 1)
    found = spread(x, x)
    assert found.mean_by_clients == (n + 1) / 2
    assert found.mean_by_examples == pytest.approx((2 * n + 1) / 3)
    assert found.variance == pytest.approx((n**2 - 1) / 12)
    assert found.jain == pytest.approx(3 * (n + 1) / (2 * (2 * n + 1)))
    assert (found.clients, found.unscored) == (n, 0)


@pytest.mark.parametrize(("num", "tenth"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_the_worst_tenth_is_rounded_up_and_knows_the_direction(num, tenth):
    x = np.random.default_rng(0).permutation(num).astype(float)
    assert spread(x, x + 1).worst_tenth == (tenth - 1) / 2
    worst = spread(x, x + 1, lower_is_better=True).worst_tenth
    assert worst == num - 1 - (tenth - 1) / 2


def test_the_index_is_between_one_over_n_and_one():
    assert spread([3.0, 0.0, 0.0, 0.0], [1] * 4).jain == 1 / 4
    assert spread([3.0] * 4, [1] * 4).jain == 1
    assert spread([1.0, 1.0, 0.0, 0.0], [1] * 4).jain == 1 / 2


def test_the_index_does_not_depend_on_the_unit():
    x = np.random.default_rng(1).uniform(size=7)
    assert spread(100 * x, [1] * 7).jain == pytest.approx(spread(x, [1] * 7).jain)


def test_one_client_is_its_own_spread():
    assert spread([0.25], [8]) == Spread(1, 0, 0.25, 0.25, 0.25, 0.0, 1.0)


def test_a_client_without_a_score_is_left_out_and_counted():
    scores = [{"loss": 1.0, "exact_match": 0.5}, {"loss": 3.0}]
    found = spreads(scores, [{"loss": 1, "exact_match": 1}, {"loss": 3}], num_clients=3)
    assert found["loss"][:5] == (2, 1, 2.0, 2.5, 3.0)
    assert found["exact_match"] == Spread(1, 2, 0.5, 0.5, 0.5, 0.0, 1.0)


def test_without_any_score_there_is_no_spread():
    assert spreads([{}, {}], [{}, {}], num_clients=2) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_shows_in_every_number(value):
    found = spread([1.0, value], [1, 1])
    assert found[:2] == (2, 0)
    assert all(math.isnan(number) for number in found[2:])


def test_scores_of_zero_are_equal():
    assert spread([0.0, 0.0], [1, 1]).jain == 1
