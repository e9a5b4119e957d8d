"""SCAFFOLD's example of drift: two clients with opposite slopes G, which cancel in the mean loss.

f_1 = x^2 + G x and f_2 = -G x, the functions behind FedAvg's lower bound (arXiv:1910.06378,
Theorem II); the mean is x^2 / 2. Their curvatures differ, so that local steps drift.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import Context, uniformly

RATE, STEPS = 0.05, 10
SPREADS = [1.0, 10.0, 100.0]


def loss_fn(x, model, batch, key):
    del model, key
    loss = jnp.mean(batch["curvature"] * x**2 / 2 + batch["pull"] * x)
    return loss, {"loss": loss}


def two_clients(spread):
    pairs = [(2.0, spread), (0.0, -spread)]
    arrays = [{"curvature": np.float32([a]), "pull": np.float32([g])} for a, g in pairs]
    return fp.ArrayClients(arrays, batch_size=1, local_steps=STEPS)


def rest(algorithm, spread, rounds=150):
    run = fp.run(algorithm, None, two_clients(spread), params=jnp.ones(()), rounds=rounds)
    return float(fp.deployed(algorithm, None, list(run)[-1][0])[1])


@pytest.mark.parametrize("spread", SPREADS)
def test_fed_avg_rests_as_far_away_as_clients_pull_apart(spread):
    """Client 1 ends at -G/2 + q (x + G/2), client 2 at x + K eta G; their mean is x."""
    fed_avg = algorithms.fed_avg(loss_fn, optax.sgd(RATE), weigh_fn=uniformly)
    q = (1 - 2 * RATE) ** STEPS
    expected = spread * (STEPS * RATE / (1 - q) - 0.5)
    np.testing.assert_allclose(rest(fed_avg, spread), expected, rtol=1e-3)
    assert expected > 0.2 * spread


@pytest.mark.parametrize("make", [algorithms.scaffold, algorithms.scaffold_option_1])
@pytest.mark.parametrize("spread", SPREADS)
def test_scaffold_reaches_the_optimum_of_the_mean(make, spread):
    assert abs(rest(make(loss_fn, RATE, participation=1.0), spread)) < 1e-5 * spread


def first_rounds(algorithm, spread, *, warm, rounds=3):
    """x after each round; with `warm` controls, every c_k is the gradient of f_k at the start."""
    clients, x = two_clients(spread), jnp.ones(())
    data = [clients.visit(k, np.random.default_rng(0)) for k in range(2)]
    shared = algorithm.init(x)
    controls = [x * 0, x * 0]
    if warm:
        controls = [2 * x + spread, 0 * x - spread]
        shared = shared._replace(control=sum(controls) / 2)
    state, path = algorithm.server.init(shared), []
    for round in range(rounds):
        context = Context(jax.random.key(0), jnp.int32(round), 0)
        values = []
        for k in range(2):
            args = None, shared, controls[k], data[k], context
            upload, controls[k], _ = algorithm.client.update(*args)
            values.append(upload.value)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *values)
        shared, state = algorithm.server.update(mean, state, shared)
        path.append(float(shared.params))
    return path


@pytest.mark.heavy
def test_scaffolds_path_does_not_depend_on_how_far_clients_pull_apart():
    scaffold = algorithms.scaffold(loss_fn, RATE, participation=1.0)
    warm = [first_rounds(scaffold, spread, warm=True) for spread in SPREADS]
    for path in warm[1:]:
        np.testing.assert_allclose(path, warm[0], atol=2e-4)
    assert abs(warm[0][-1]) < 0.5  # and it goes somewhere
    cold = [first_rounds(scaffold, spread, warm=False)[0] for spread in SPREADS]
    assert cold[2] - cold[0] > 1  # which is FedAvg's first round
