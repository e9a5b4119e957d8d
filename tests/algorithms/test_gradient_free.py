"""Gradient-free algorithms: the model rebuilt from numbers is the mean of the clients' models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import (
    CLIENTS,
    CURVATURE,
    DIM,
    JOINT,
    LR,
    MINIMUM,
    STEPS,
    quadratic,
    quadratic_clients,
    solve,
)

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import forward, uniformly
from fedjax_post.simulate.run import wire_bytes_of

SEEDS = 16


def by_pool(params, model, batch, key):
    """FedKSeed's step, told by the parameters alone."""
    seed_key, loss_key = jax.random.split(key)
    seed = jax.random.randint(seed_key, (), 0, SEEDS)
    z = forward.random_direction(jax.random.fold_in(jax.random.key(0), seed), params)
    slope_fn = forward.central_difference(quadratic, 5e-4)
    slope, metrics = slope_fn(params, z, model, batch, loss_key)
    return slope * z, metrics


@pytest.mark.heavy
@pytest.mark.parametrize("rounds", [1, 4])
def test_seeds_rebuild_the_mean_of_the_clients_models(rounds):
    """FedKSeed's numbers against FedAvg of the very walks, clients of unequal weight."""
    weigh_fn = lambda data: jnp.abs(data.batches["b"][0, 0, 0]) + 0.1
    by_seed = algorithms.fed_k_seed(quadratic, 0.02, num_seeds=SEEDS, weigh_fn=weigh_fn)
    sgd = optax.sgd(0.02)
    whole = algorithms.fed_avg(forward.from_estimate(by_pool), sgd, weigh_fn=weigh_fn)
    found, expected = (solve(a, rounds=rounds) for a in (by_seed, whole))
    # rounding differs between the two, and a finite difference magnifies it
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(expected).max() > 0.05


def test_de_com_fl_is_its_loop_written_out():
    algorithm = algorithms.de_com_fl(quadratic, 0.02, num_slopes=STEPS, weigh_fn=uniformly)
    found, x = solve(algorithm, rounds=4), np.zeros(DIM)
    for round in range(4):
        ends = []
        for k in range(CLIENTS):
            y = x
            for step in range(STEPS):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), round), step)
                z = np.asarray(jax.random.normal(jax.random.split(key, 1)[0], DIM))
                y = y - 0.02 * (CURVATURE[k] * (y - MINIMUM[k]) @ z) * z
            ends.append(y)
        x = np.mean(ends, 0)
    np.testing.assert_allclose(found, x, atol=1e-3)


METHODS = {
    "fed_mezo": algorithms.fed_mezo(quadratic, optax.sgd(0.01), weigh_fn=uniformly),
    "fed_fwd": algorithms.fed_fwd(quadratic, optax.sgd(0.01), weigh_fn=uniformly),
    "fed_k_seed": algorithms.fed_k_seed(quadratic, 0.01, num_seeds=256, weigh_fn=uniformly),
    "de_com_fl": algorithms.de_com_fl(quadratic, 0.01, num_slopes=2, weigh_fn=uniformly),
}


@pytest.mark.heavy
@pytest.mark.parametrize("algorithm", METHODS.values(), ids=METHODS)
def test_it_comes_close_to_the_joint_optimum(algorithm):
    found = solve(algorithm, rounds=600, local_steps=2)
    mean_loss = lambda x: 0.5 * (CURVATURE * (x - MINIMUM) ** 2).sum(1).mean()
    first, best = mean_loss(np.zeros(DIM)), mean_loss(JOINT)
    assert mean_loss(found) - best < 0.05 * (first - best)


@pytest.mark.parametrize(
    ("algorithm", "up", "down"),
    [
        (algorithms.fed_k_seed(quadratic, LR, num_seeds=100), 404, 400),
        (algorithms.de_com_fl(quadratic, LR, num_slopes=5), 24, 24),
    ],
)
def test_bytes_do_not_depend_on_the_number_of_parameters(algorithm, up, down):
    for dim in (1, DIM):
        sizes = wire_bytes_of(algorithm, None, quadratic_clients(2), jnp.zeros(dim))
        assert (sizes.up, sizes.down) == (up, down)


def test_de_com_fl_bills_the_rounds_that_a_client_missed():
    algorithm = algorithms.de_com_fl(quadratic, LR, num_slopes=2)
    turns = lambda population, rng: np.array([0, 1]) if rng.random() < 0.5 else np.array([0])
    plan = fp.Plan(sampler=turns, seed=3)
    run = fp.run(algorithm, None, quadratic_clients(2), params=jnp.zeros(DIM), rounds=8, plan=plan)
    seen, expected, billed = np.zeros(2, int), [], []
    for state, record in run:
        del state
        round, cohort = record["round"], record["cohort"]
        missed = sum(round - seen[k] for k in range(cohort))
        seen[:cohort] = round
        expected.append(8 * missed + 4 * cohort)
        billed.append(record["bytes_down"])
    assert billed == expected
    assert len(set(billed)) > 2


def test_a_round_is_applied_once_however_often_it_is_sent():
    """As after a round that nobody attended."""
    algorithm = algorithms.de_com_fl(quadratic, LR, num_slopes=2)
    state = fp.init(algorithm, jnp.zeros(DIM))
    sent = state.shared.sent._replace(slopes=jnp.ones(2), served=jnp.int32(1))
    state = state._replace(shared=state.shared._replace(sent=sent))
    once = fp.broadcast(algorithm, state)
    again = fp.broadcast(algorithm, state._replace(replica=once))
    np.testing.assert_array_equal(once.params, again.params)
    assert np.abs(once.params).max() > 0


def test_a_visit_longer_than_the_message_is_refused():
    algorithm = algorithms.de_com_fl(quadratic, LR, num_slopes=2)
    with pytest.raises(ValueError, match="a visit has 3 steps; raise num_slopes=2"):
        solve(algorithm, rounds=1, local_steps=3)


def test_a_pool_has_seeds():
    with pytest.raises(ValueError, match="num_seeds must be at least 1, got 0"):
        algorithms.fed_k_seed(quadratic, LR, num_seeds=0)
