"""Fairness: the optimum of each objective, in closed form or by its stationarity."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import CURVATURE, LR, MINIMUM, quadratic, quadratic_clients, solve

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import uniformly


def losses(x):
    return 0.5 * (CURVATURE * (x - MINIMUM) ** 2).sum(1)


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
def test_q_fed_avg_rests_where_its_objective_is_flat(q):
    """sum_k F_k^q grad F_k = 0 for one step a round, which is q-FedSGD."""
    found = solve(algorithms.q_fed_avg(quadratic, LR, q=q), rounds=800, local_steps=1)
    gradients = CURVATURE * (found - MINIMUM)
    weights = losses(found)[:, None] ** q
    flat = (weights * gradients).sum(0) / weights.sum()
    np.testing.assert_allclose(flat, 0, atol=1e-3)
    assert np.abs(gradients.mean(0)).max() > 0.01  # which is not where the mean loss is flat


@pytest.mark.heavy
def test_more_q_is_more_even():
    spreads, means = [], []
    for q in (0.0, 1.0, 4.0):
        found = solve(algorithms.q_fed_avg(quadratic, LR, q=q), rounds=600, local_steps=1)
        spreads.append(losses(found).std())
        means.append(losses(found).mean())
    assert spreads[0] > spreads[1] > spreads[2]
    assert means[0] < means[1] < means[2]


def test_q_zero_is_fed_avg():
    one = solve(algorithms.q_fed_avg(quadratic, LR, q=0.0), rounds=4)
    other = solve(algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly), rounds=4)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_one_q_step_is_algorithm_2_written_out():
    q, w = 2.0, np.full(3, 0.7)
    params = jnp.asarray(w, jnp.float32)
    found = solve(algorithms.q_fed_avg(quadratic, LR, q=q), rounds=1, params=params)
    ends = MINIMUM + (1 - LR * CURVATURE) ** 8 * (w - MINIMUM)
    d = (w - ends) / LR
    f = losses(w)
    h = q * f ** (q - 1) * (d**2).sum(1) + f**q / LR
    np.testing.assert_allclose(found, w - (f[:, None] ** q * d).sum(0) / h.sum(), rtol=1e-4)


def scalars(rows):
    """Clients of one number, losses a (x - b)^2 / 2."""
    arrays = [{"a": np.float32([[a]]), "b": np.float32([[b]])} for a, b in rows]
    return fp.ArrayClients(arrays, batch_size=1, local_steps=1)


@pytest.mark.parametrize(
    "rows", [[(1.0, 0.0), (4.0, 1.0)], [(1.0, -1.0), (3.0, 2.0), (2.0, 0.1)]], ids=["two", "three"]
)
def test_agnostic_fed_avg_finds_the_minimax(rows):
    """Where the two losses that pull apart are equal; a third within them counts for nothing."""
    (a, b), (c, d) = rows[:2]
    best = (np.sqrt(a) * b + np.sqrt(c) * d) / (np.sqrt(a) + np.sqrt(c))
    algorithm = algorithms.agnostic_fed_avg(quadratic, optax.sgd(LR), weight_lr=0.1)
    run = fp.run(algorithm, None, scalars(rows), params=jnp.zeros(1), rounds=800)
    shared = list(run)[-1][0].shared
    np.testing.assert_allclose(shared.params, best, atol=5e-3)
    np.testing.assert_allclose(shared.level, a * (best - b) ** 2 / 2, atol=1e-2)


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_agnostic_fed_avg_is_the_published_algorithm_from_its_first_round(eta):
    """l_k proportional to exp(eta times the sum of k's losses so far), w the mixture by l."""
    w, log_l, expected = np.zeros(3), np.zeros(5), []
    for _ in range(5):
        share = np.exp(log_l) / np.exp(log_l).sum()
        log_l = log_l + eta * losses(w)
        w = share @ (MINIMUM + (1 - LR * CURVATURE) ** 8 * (w - MINIMUM))
        expected.append(w)
    algorithm = algorithms.agnostic_fed_avg(quadratic, optax.sgd(LR), weight_lr=eta)
    found = [s.shared.params for s, _ in fp.run(
        algorithm, None, quadratic_clients(8), params=jnp.zeros(3), rounds=5
    )]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_client_that_comes_late_is_neither_ahead_nor_behind():
    """Equal losses that nothing moves: whoever was there in whichever round, all count alike."""
    visits = itertools.cycle([[0, 1], [0, 2, 3], [1, 4], [0, 1, 2, 3, 4]])
    sides = [(1.0, 1.0), (1.0, -1.0), (1.0, 1.0), (1.0, -1.0), (1.0, 1.0)]
    run = fp.run(
        algorithms.agnostic_fed_avg(quadratic, optax.sgd(0.0), weight_lr=5.0),
        None, scalars(sides), params=jnp.zeros(1), rounds=4,
        plan=fp.Plan(sampler=lambda population, rng: np.array(next(visits))),
    )  # fmt: skip
    weights = [record["weight"] / record["cohort"] for _, record in run]
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_agnostic_without_its_weights_is_fed_avg():
    still = algorithms.agnostic_fed_avg(quadratic, optax.sgd(LR), weight_lr=0.0)
    other = algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly)
    np.testing.assert_allclose(solve(still, rounds=4), solve(other, rounds=4), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: algorithms.q_fed_avg(quadratic, LR, q=-1), "q must not be negative, got -1"),
        (
            lambda: algorithms.agnostic_fed_avg(quadratic, optax.sgd(LR), weight_lr=-1),
            "weight_lr must not be negative, got -1",
        ),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
