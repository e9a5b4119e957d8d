"""Fed-BBPT: SPSA against its definition, and the generator against its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import CURVATURE, JOINT, MINIMUM, quadratic, solve

from fedjax_post import algorithms
from fedjax_post.blackbox.soft_prompt import generators_for, prompt_of
from fedjax_post.blackbox.spsa import _segmented_uniform, spsa


@pytest.mark.heavy
def test_the_estimate_has_the_gradient_for_its_mean():
    """On a quadratic, where a central difference is exact, to the error of 4000 directions."""
    params = {"x": jnp.asarray([0.3, -1.0]), "y": jnp.asarray([[2.0]])}
    curvature = {"x": jnp.asarray([1.0, 3.0]), "y": jnp.asarray([[0.5]])}

    def loss_fn(params, model, batch, key):
        terms = jax.tree.map(lambda a, p: (a * p**2).sum() / 2, curvature, params)
        loss = sum(jax.tree.leaves(terms))
        return loss, {"loss": loss, "queries": jnp.float32(1)}

    estimate = jax.jit(
        jax.grad(spsa(loss_fn, 0.1, num_directions=4000), has_aux=True), static_argnums=1
    )
    grads, metrics = estimate(params, None, None, jax.random.key(0))
    expected = jax.tree.map(jnp.multiply, curvature, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.15), grads, expected)
    assert metrics["queries"] == 8000  # two for each direction
    np.testing.assert_allclose(metrics["loss"], loss_fn(params, None, None, None)[0], rtol=0.02)


def test_directions_have_sizes_from_a_half_to_one():
    v = np.asarray(_segmented_uniform(jax.random.key(0), (5000,), jnp.float32))
    assert np.abs(v).min() >= 0.5
    assert np.abs(v).max() <= 1
    np.testing.assert_allclose(np.abs(v).mean(), 0.75, atol=0.01)
    np.testing.assert_allclose((v > 0).mean(), 0.5, atol=0.03)


def test_the_corrected_step_is_a_nesterov_trace():
    """theta - a (g + b m) with m = b m + g, as BlackVIP writes it."""
    tx, m, rng = optax.trace(0.9, nesterov=True), 0.0, np.random.default_rng(0)
    state = tx.init(jnp.zeros(()))
    for g in rng.normal(size=5):
        m = 0.9 * m + g
        update, state = tx.update(jnp.asarray(g), state)
        np.testing.assert_allclose(update, g + 0.9 * m, rtol=1e-5)


def test_the_prompt_is_the_start_and_triggers_times_decoder():
    start = {"embeddings": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)}
    (generator,) = generators_for(start, 2)
    moved = generator._replace(triggers=jnp.ones((4, 2)))
    found = prompt_of(start, [moved])["embeddings"]
    row = start["embeddings"].std() * moved.decoder.sum(0)
    np.testing.assert_allclose(found, start["embeddings"] + row[None], rtol=1e-5)


def test_it_comes_close_to_the_joint_optimum():
    algorithm = algorithms.fed_bbpt(quadratic, generator_rank=3, spsa_step=0.05)
    found = solve(algorithm, rounds=150, local_steps=2)
    mean_loss = lambda x: 0.5 * (CURVATURE * (x - MINIMUM) ** 2).sum(1).mean()
    first, best = mean_loss(np.zeros(3)), mean_loss(JOINT)
    assert mean_loss(found) - best < 0.1 * (first - best)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"generator_rank": 0}, "must be at least 1 and spsa_step"),
        ({"spsa_radius": 0.0}, "positive, got 8, 5, 1.0 and 0.0"),
        ({"spsa_momentum": 1.0}, r"spsa_momentum must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        algorithms.fed_bbpt(quadratic, **setting)
