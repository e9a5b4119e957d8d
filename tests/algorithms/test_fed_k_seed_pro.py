"""FedKSeed-Pro: the draw, the walk and the history, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import CLIENTS, CURVATURE, DIM, LR, MINIMUM, STEPS, quadratic, quadratic_clients

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.blackbox.directions import pool_direction
from fedjax_post.blackbox.seed_pool import draw_logits
from fedjax_post.core import uniformly
from fedjax_post.simulate.run import wire_bytes_of

SEEDS, CLIP = 8, 0.8


def published_probabilities(mean_slopes):
    """Softmax of the min-max normalised means, as in the authors' code."""
    low, high = mean_slopes.min(), mean_slopes.max()
    scaled = np.exp((mean_slopes - low) / (high - low + 1e-10))
    return scaled / scaled.sum()


def test_probabilities_are_the_published_ones():
    slopes = np.random.default_rng(0).exponential(size=SEEDS).astype(np.float32)
    found = jax.nn.softmax(draw_logits(jnp.asarray(slopes)))
    np.testing.assert_allclose(found, published_probabilities(slopes), rtol=1e-5)
    np.testing.assert_allclose(found.max() / found.min(), np.e, rtol=1e-5)
    np.testing.assert_allclose(jax.nn.softmax(draw_logits(jnp.zeros(SEEDS))), 1 / SEEDS, rtol=1e-6)


def test_it_is_its_loop_written_out():
    settings = {"num_seeds": SEEDS, "slope_clip": CLIP, "weigh_fn": uniformly}
    algorithm = algorithms.fed_k_seed_pro(quadratic, 0.02, **settings)
    clients, rounds = quadratic_clients(STEPS), 3
    run = fp.run(algorithm, None, clients, params=jnp.zeros(DIM), rounds=rounds)
    state = list(run)[-1][0]
    pool = np.stack([np.asarray(pool_direction(j, jnp.zeros(DIM))) for j in range(SEEDS)])
    x, sizes, counts, drawn = np.zeros(DIM), np.zeros(SEEDS), np.zeros(SEEDS), []
    for round in range(rounds):
        slopes = np.where(counts > 0, sizes / np.maximum(counts, 1), 0)
        logits = jnp.log(jnp.asarray(published_probabilities(slopes), jnp.float32))
        ends = []
        for k in range(CLIENTS):
            y = x
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), round), k)
            key = jax.random.split(key)[0]
            for step in range(STEPS):
                seed_key = jax.random.split(jax.random.fold_in(key, step))[0]
                j = int(jax.random.categorical(seed_key, logits))
                slope = (CURVATURE[k] * (y - MINIMUM[k])) @ pool[j]
                y = y - 0.02 * slope * pool[j]
                sizes[j] += min(abs(slope), CLIP)
                counts[j] += 1
                drawn.append(slope)
            ends.append(y)
        x = np.mean(ends, 0)
    found = np.asarray(fp.deployed(algorithm, None, state)[1])
    np.testing.assert_allclose(found, x, atol=1e-3)
    sent = algorithm.downlink.encode(state.shared)
    np.testing.assert_allclose(sent.slopes, sizes / counts, atol=2e-3)
    assert np.abs(x).max() > 0.05
    assert (np.abs(drawn) > CLIP).any()
    # what the draw excludes: the logits of a uniform one are not these
    assert sent.slopes.max() - sent.slopes.min() > 0.2


def test_the_history_is_paid_for():
    algorithm = algorithms.fed_k_seed_pro(quadratic, LR, num_seeds=100)
    for dim in (1, DIM):
        sizes = wire_bytes_of(algorithm, None, quadratic_clients(2), jnp.zeros(dim))
        assert (sizes.up, sizes.down) == (3 * 400 + 4, 2 * 400)


@pytest.mark.parametrize("setting", [{"num_seeds": 0}, {"slope_clip": 0.0}])
def test_settings_are_checked(setting):
    with pytest.raises(ValueError, match="must be"):
        algorithms.fed_k_seed_pro(quadratic, LR, **setting)
