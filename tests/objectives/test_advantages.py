"""Laws of GRPO's advantages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.objectives.grpo import advantages


def test_advantages_have_no_mean_and_a_deviation_of_one_unless_all_are_equal():
    rewards = jnp.array([[0.0, 1.0, 1.0, 0.0], [3.0, 3.0, 3.0, 3.0], [0.1, 0.2, 0.3, 0.6]])
    found = np.asarray(advantages(rewards))
    np.testing.assert_allclose(found[0], [-1, 1, 1, -1])
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(found[2].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(found[2].std(), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 7, 8, 16, 33])
def test_equal_rewards_have_no_advantage_at_any_scale(size):
    levels = np.array(
        [0.1, 0.3, 1.0, 20.1, 25.0, 50.0, 99.9, 100.0, 123.4, 1e4 / 3, 1e-30, 7e-7, 1e30, 3e38]
    )
    levels = np.concatenate([levels, -levels, [0.0]])
    rewards = jnp.asarray(np.repeat(levels[:, None], size, 1), jnp.float32)
    for found in (advantages(rewards), jax.jit(advantages)(rewards)):
        np.testing.assert_array_equal(found, 0.0)
    almost = rewards.at[:, 1:].set(jnp.nextafter(rewards[:, 1:], jnp.inf))
    np.testing.assert_array_equal(advantages(almost)[:-1], 0.0)  # as sums in another order are


@pytest.mark.parametrize("scale", [1e-25, 1e-7, 1e-3, 1.0, 1e5, 1e25, 1e37])
def test_advantages_do_not_depend_on_the_unit_of_rewards(scale):
    rewards = np.random.default_rng(0).normal(size=(5, 6))
    expected = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    found = advantages(jnp.asarray(scale * rewards, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0, -30.0, 1e3, 1e6])
def test_small_differences_between_large_rewards_keep_their_order(offset):
    step = 32 * np.spacing(np.float32(abs(offset)) if offset else np.float32(1.0))
    rewards = jnp.asarray(offset + step * np.array([[0.0, 1.0, 0.0, 0.0, 2.0]]), jnp.float32)
    found = np.asarray(advantages(rewards))[0]
    expected = np.array([-0.6, 0.4, -0.6, -0.6, 1.4]) / np.std([0, 1, 0, 0, 2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_advantages_are_those_of_trl_but_for_its_deviation():
    """trl: (r - mean) / (std + 1e-4), std of the sample."""
    rewards = np.random.default_rng(1).uniform(0, 10, size=(4, 8))
    of_trl = (rewards - rewards.mean(1, keepdims=True)) / (
        rewards.std(1, ddof=1, keepdims=True) + 1e-4
    )
    found = np.asarray(advantages(jnp.asarray(rewards, jnp.float32)))
    np.testing.assert_allclose(found * np.sqrt(7 / 8), of_trl, rtol=1e-3)


def test_the_largest_rewards_have_advantages():
    found = advantages(jnp.array([[3e38, -3e38, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [[2**0.5, -(2**0.5), 0.0, 0.0]], rtol=1e-6)
