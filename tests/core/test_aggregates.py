"""Aggregates: order, chunks and merging do not matter; clients of weight zero do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.core import fixed_mean, stack, weighted_mean

RNG = np.random.default_rng(0)
VALUES = {"a": jnp.asarray(RNG.normal(size=(6, 2, 3)), jnp.float32), "b": jnp.arange(6.0)}
WEIGHTS = jnp.asarray([1.0, 2.0, 0.0, 4.0, 5.0, 0.5])
LIKE = jax.tree.map(lambda x: x[0], VALUES)
AGGREGATES = {"weighted_mean": weighted_mean(), "fixed_mean": fixed_mean(4), "stack": stack()}


def added(aggregate, *slices, values=VALUES):
    total = aggregate.init(LIKE, 6)
    for part in slices:
        total = aggregate.add(total, jax.tree.map(lambda x, p=part: x[p], values), WEIGHTS[part])
    return total


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_chunks_do_not_matter(aggregate):
    once = aggregate.finish(added(aggregate, slice(0, 6)))
    assert_close(once, aggregate.finish(added(aggregate, slice(0, 2), slice(2, 6))))


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_merging_is_adding(aggregate):
    once = aggregate.finish(added(aggregate, slice(0, 6)))
    halves = added(aggregate, slice(0, 2)), added(aggregate, slice(2, 6))
    assert_close(once, aggregate.finish(aggregate.merge(*halves)))


@pytest.mark.parametrize("aggregate", AGGREGATES.values(), ids=AGGREGATES)
def test_a_value_without_weight_does_not_count(aggregate):
    poisoned = {"a": VALUES["a"].at[2].set(jnp.nan), "b": VALUES["b"].at[2].set(jnp.inf)}
    finished = aggregate.finish(added(aggregate, slice(0, 6), values=poisoned))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(finished))


def test_weighted_mean_is_numpys():
    found = weighted_mean().finish(added(weighted_mean(), slice(0, 6)))
    np.testing.assert_allclose(found["b"], np.average(VALUES["b"], weights=WEIGHTS), rtol=1e-6)


def test_mean_of_nobody_is_zero():
    aggregate = weighted_mean()
    assert float(aggregate.finish(aggregate.init(LIKE, 6))["b"]) == 0


def test_fixed_mean_counts_each_client_once():
    found = fixed_mean(4).finish(added(fixed_mean(4), slice(0, 6)))
    assert float(found["b"]) == pytest.approx((0 + 1 + 3 + 4 + 5) / 4)


def test_fixed_mean_checks_its_count():
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        fixed_mean(0)


def test_half_precision_values_are_summed_in_float32():
    like = jnp.zeros((), jnp.bfloat16)
    aggregate = weighted_mean()
    values = jnp.full(1000, 1.0, jnp.bfloat16)
    total = aggregate.add(aggregate.init(like, 1000), values, jnp.ones(1000))
    assert float(aggregate.finish(total)) == 1.0
