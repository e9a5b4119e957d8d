"""Noise of clients: the distribution of the discrete Gaussian, and what a run shows of it."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

from fedjax_post.privacy.secure.discrete import discrete_gaussian

NUMBER = 20_000


@pytest.mark.parametrize("sigma", [0.4, 1.7, 40.0])
def test_it_is_the_discrete_gaussian(sigma):
    """Against P(x) ~ exp(-x^2 / (2 sigma^2)), by chi-square over integers or groups of them."""
    drawn = np.asarray(discrete_gaussian(jax.random.key(1), sigma, (NUMBER,)))
    support = np.arange(-math.ceil(9 * sigma), math.ceil(9 * sigma) + 1)
    chance = np.exp(-(support**2) / (2 * sigma**2))
    chance /= chance.sum()
    counts = np.array([(drawn == x).sum() for x in support])
    assert counts.sum() == NUMBER
    # groups of neighbours with ten expected draws or more
    group = np.minimum(np.cumsum(chance) * NUMBER // 10, NUMBER // 10 - 1).astype(int)
    _, group = np.unique(group, return_inverse=True)
    sums = lambda x: np.bincount(group, x)
    assert scipy.stats.chisquare(sums(counts), NUMBER * sums(chance)).pvalue > 1e-4


def test_large_noise_leaves_no_integer_out():
    """A float32 normal of this deviation, rounded, would only give multiples of a power of two."""
    sigma = 2.0**22
    drawn = np.asarray(discrete_gaussian(jax.random.key(2), sigma, (NUMBER,)), np.float64)
    low, high = scipy.stats.chi2.interval(1 - 1e-6, NUMBER)
    assert low < (drawn**2).sum() / sigma**2 < high
    assert scipy.stats.kstest(drawn / sigma, "norm").pvalue > 1e-4
    far = drawn[np.abs(drawn) > sigma]
    assert scipy.stats.chisquare(np.bincount(far.astype(np.int64) % 8, minlength=8)).pvalue > 1e-4
