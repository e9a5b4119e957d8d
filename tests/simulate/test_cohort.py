"""Cohorts: the right sizes, the right odds, from the seed and the round alone."""

import numpy as np
import pytest

from fedjax_post.simulate.cohort import data_rng, draw, full, in_chunks, poisson, uniform


def test_uniform_is_without_replacement_and_fair():
    counts = np.zeros(20)
    for round in range(2000):
        cohort = draw(uniform(5), 20, seed=0, round=round)
        assert len(set(cohort)) == 5
        counts[cohort] += 1
    np.testing.assert_allclose(counts, 500, atol=5 * np.sqrt(500))


def test_poisson_has_its_mean_and_its_variance():
    sizes = [len(draw(poisson(8), 100, seed=0, round=r)) for r in range(2000)]
    assert np.mean(sizes) == pytest.approx(8, abs=0.3)
    assert np.var(sizes) == pytest.approx(8 * 0.92, rel=0.15)


def test_a_cohort_follows_from_seed_and_round():
    one = draw(uniform(5), 1000, seed=3, round=7)
    np.testing.assert_array_equal(one, draw(uniform(5), 1000, seed=3, round=7))
    assert not np.array_equal(one, draw(uniform(5), 1000, seed=3, round=8))
    assert not np.array_equal(one, draw(uniform(5), 1000, seed=4, round=7))


def test_data_order_follows_from_seed_round_and_client():
    draws = {data_rng(*where).random() for where in [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 3)]}
    assert len(draws) == 4
    assert data_rng(0, 1, 2).random() == data_rng(0, 1, 2).random()


def test_full_is_everybody():
    assert draw(full(), 4, seed=0, round=0).tolist() == [0, 1, 2, 3]


def test_a_million_clients_are_sampled_at_once():
    assert len(draw(uniform(8), 1_000_000, seed=0, round=0)) == 8


def test_chunks_pad_with_minus_one():
    assert in_chunks(np.array([4, 5, 6]), 2).tolist() == [[4, 5], [6, -1]]
    assert in_chunks(np.array([], int), 2).tolist() == [[-1, -1]]


@pytest.mark.parametrize("sampler", [uniform(9), poisson(9)])
def test_a_cohort_larger_than_the_population_is_refused(sampler):
    with pytest.raises(
        ValueError, match="9 exceeds the population of 8 clients; lower --cohort_si"
    ):
        draw(sampler, 8, seed=0, round=0)


@pytest.mark.parametrize("make", [uniform, poisson])
def test_an_empty_cohort_is_refused(make):
    with pytest.raises(ValueError, match="got 0"):
        make(0)
