"""FwdLLM: its pacing, its sampling, and that its estimate has the gradient as mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import CLIENTS, CURVATURE, DIM, MINIMUM, quadratic, quadratic_clients

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.blackbox.directions import nearest_direction
from fedjax_post.blackbox.halves import Answer, halves, variance
from fedjax_post.core import forward

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}


def answers(count, spread=1.0):
    """Answers of some clients around a common gradient, and the half that each is in."""
    draw = lambda *shape: 1 + spread * RNG.normal(size=(count, *shape)).astype(np.float32)
    second = (np.arange(count) % 2).astype(np.uint8)
    return Answer({"w": draw(2, 3), "b": draw(3)}, second)


def gather(rounds):
    """What the aggregate makes of rounds of answers, one after the other."""
    total = halves().init(jax.tree.map(lambda x: x[0], rounds[0]), 0)
    for some in rounds:
        total = halves().add(total, some, jnp.ones(len(some.second)))
    return halves().finish(total)


def half_means(rounds):
    """Rows of the mean gradients `[2, entries]`, float64."""
    flat = [np.concatenate([a.gradient["b"], a.gradient["w"].reshape(-1, 6)], 1) for a in rounds]
    rows, second = np.concatenate(flat), np.concatenate([a.second for a in rounds])
    return np.stack([rows[second == half].mean(0, dtype=np.float64) for half in (0, 1)]), rows


def test_the_variance_is_that_of_two_halves_means():
    rounds = [answers(4), answers(3)]
    means, _ = half_means(rounds)
    expected = means.var(0, ddof=1).mean()  # as torch.var does, over entries
    np.testing.assert_allclose(variance(gather(rounds)), expected, rtol=1e-5)
    alone = answers(1)
    assert np.isinf(variance(gather([alone])))


def test_the_absent_give_no_answer():
    some = answers(4)
    poisoned = some._replace(gradient=jax.tree.map(lambda g: np.array(g), some.gradient))
    poisoned.gradient["w"][2] = np.nan
    like = jax.tree.map(lambda x: x[0], some)
    total = halves().add(halves().init(like, 4), poisoned, jnp.array([1.0, 1, 0, 1]))
    kept = jax.tree.map(lambda x: np.delete(x, 2, 0), some)
    jax.tree.map(np.testing.assert_allclose, total, gather([kept]))


def test_the_server_waits_until_the_answers_agree():
    noisy, quiet = answers(4, spread=5.0), answers(200, spread=0.1)
    first, both = (float(variance(gather(r))) for r in ([noisy], [noisy, quiet]))
    assert both < first / 10
    algorithm = algorithms.fwd_llm(quadratic, server_lr=0.5, max_variance=2 * both)
    state = fp.init(algorithm, PARAMS)
    shared, opt_state = algorithm.server.update(gather([noisy]), state.server, state.shared)
    jax.tree.map(np.testing.assert_array_equal, shared.params, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, shared.last, PARAMS)
    assert float(shared.gathered.weight.sum()) == 4
    shared, _ = algorithm.server.update(gather([quiet]), opt_state, shared)
    mean = half_means([noisy, quiet])[1].mean(0)
    np.testing.assert_allclose(shared.params["b"], -0.5 * mean[:3], rtol=1e-4)
    np.testing.assert_allclose(shared.last["w"].ravel(), mean[3:], rtol=1e-4)
    assert float(optax.tree.norm(shared.gathered)) == 0


def test_the_direction_is_the_nearest_candidate_tensor_by_tensor():
    last = {"w": jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32), "b": jnp.ones(3)}
    key, count = jax.random.key(3), 10
    chosen = nearest_direction(key, last, num_candidates=count)
    drawn = [forward.random_direction(k, last) for k in jax.random.split(key, count)]
    for name, g in last.items():
        rows = np.stack([np.asarray(d[name], np.float64).ravel() for d in drawn])
        cosine = rows @ np.asarray(g, np.float64).ravel() / np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(np.ravel(chosen[name]), rows[cosine.argmax()], rtol=1e-6)
    nothing = nearest_direction(key, optax.tree.zeros_like(last), num_candidates=count)
    np.testing.assert_array_equal(nothing["w"], drawn[0]["w"])


def test_a_round_steps_down_the_gradient():
    """Of 1000 directions in 3 dimensions: off by (d + 1) / n of its square, in the mean."""
    algorithm = algorithms.fwd_llm(
        quadratic, server_lr=1.0, max_variance=float("inf"), num_candidates=1
    )
    clients = quadratic_clients(1000 // CLIENTS)
    run = fp.run(algorithm, None, clients, params=jnp.zeros(DIM), rounds=1)
    found = -np.asarray(list(run)[-1][0].shared.params)
    expected = -(CURVATURE * MINIMUM).mean(0)
    assert np.linalg.norm(found - expected) < 0.25 * np.linalg.norm(expected)


def test_sampling_brings_directions_nearer_to_the_last_gradient():
    """And so a step of one direction is nearer to the gradient than without."""
    last = jnp.asarray(RNG.normal(size=20), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 50)
    cosine = lambda v: v @ last / jnp.linalg.norm(v) / jnp.linalg.norm(last)
    mean = lambda n: np.mean([cosine(nearest_direction(k, last, num_candidates=n)) for k in keys])
    # the greatest of ten normal numbers is 1.54 deviations above their mean
    np.testing.assert_allclose(mean(10), 1.54 / np.sqrt(20), rtol=0.15)
    assert abs(mean(1)) < 0.1


@pytest.mark.parametrize(
    "setting", [{"max_variance": 0.0}, {"num_candidates": 0}, {"epsilon": 0.0}]
)
def test_settings_are_checked(setting):
    with pytest.raises(ValueError, match="must be positive"):
        algorithms.fwd_llm(quadratic, **setting)
