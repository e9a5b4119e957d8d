"""Cohorts: the right sizes and probabilities, determined by seed and round alone."""

import numpy as np
import pytest

from fedjax_post.simulate.cohort import data_rng, draw, full, in_chunks, poisson, uniform, widths_of


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


def test_chunks_of_equal_visits_keep_the_order_and_pad_with_minus_one():
    chunks = lambda ids: [
        x.tolist() for x in in_chunks(np.array(ids, int), 3 * np.ones(len(ids)), (2, 1))
    ]
    assert chunks([4, 5, 6]) == [[4, 5], [6, -1]]
    assert chunks([]) == [[-1, -1]]


def test_long_visits_come_first_and_in_narrow_chunks():
    ids, steps = np.array([7, 3, 9, 1, 2]), np.array([1, 40, 1, 2, 1])
    chunks = [x.tolist() for x in in_chunks(ids, steps, (4, 1))]
    assert chunks == [[3], [1, 7, 9, 2]]


@pytest.mark.parametrize("chunk_size", [8, 16, 32])
def test_a_log_normal_cohort_leaves_few_lanes_waiting(chunk_size):
    """Sigma 1, 128 clients; in the order of their ids most of the lanes would wait."""
    waiting = []
    for seed in range(20):
        draws = np.random.default_rng(seed).lognormal(0, 1, 128)
        steps = np.ceil(12 * draws).astype(int)
        chunks = in_chunks(np.arange(128), steps, widths_of(chunk_size))
        real = [chunk[chunk >= 0] for chunk in chunks]
        assert sorted(np.concatenate(real)) == list(range(128))
        assert {len(chunk) for chunk in chunks} <= set(widths_of(chunk_size))
        room = sum(len(chunk) * steps[ids].max() for chunk, ids in zip(chunks, real, strict=True))
        waiting.append(1 - steps.sum() / room)
    assert np.mean(waiting) < 0.15


def test_widths_are_multiples_of_the_unit():
    assert widths_of(32) == (32, 8, 2)
    assert widths_of(1) == (1,)
    assert widths_of(32, unit=8) == (32, 8)
    assert widths_of(6, unit=4) == (8, 4)


@pytest.mark.parametrize("sampler", [uniform(9), poisson(9)])
def test_a_cohort_larger_than_the_population_is_refused(sampler):
    with pytest.raises(ValueError, match="9 exceeds the population of 8 clients; lower `cohort_si"):
        draw(sampler, 8, seed=0, round=0)


@pytest.mark.parametrize("make", [uniform, poisson])
def test_an_empty_cohort_is_refused(make):
    with pytest.raises(ValueError, match="got 0"):
        make(0)
