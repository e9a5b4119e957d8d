"""Theorems on the algorithms, on quadratics with known solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import (
    CURVATURE,
    DIM,
    JOINT,
    LR,
    MINIMUM,
    RNG,
    STEPS,
    quadratic,
    quadratic_clients,
    solve,
)

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import uniformly


def fixed_point(mu):
    """Where y_k - x averages to zero, each y_k being STEPS steps of SGD on f_k + mu/2 |y - x|^2."""
    # One step: y <- (1 - lr (a + mu)) y + lr (a b + mu x). It tends to
    # t = (a b + mu x) / (a + mu); after STEPS steps y = t + (1 - lr (a + mu))^STEPS (x - t).
    moved = 1 - (1 - LR * (CURVATURE + mu)) ** STEPS
    pull = moved * CURVATURE / (CURVATURE + mu)
    return (pull * MINIMUM).sum(0) / pull.sum(0)


def test_fed_avg_is_biased_as_the_closed_form_says():
    found = solve(algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly), rounds=200)
    np.testing.assert_allclose(found, fixed_point(0), atol=1e-5)
    assert np.abs(found - JOINT).max() > 0.05


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_fed_prox_is_biased_as_the_closed_form_says(mu):
    algorithm = algorithms.fed_prox(quadratic, optax.sgd(LR), mu=mu, weigh_fn=uniformly)
    np.testing.assert_allclose(solve(algorithm, rounds=300), fixed_point(mu), atol=1e-5)


def test_scaffold_reaches_the_joint_optimum():
    algorithm = algorithms.scaffold(quadratic, LR, participation=1.0)
    np.testing.assert_allclose(solve(algorithm, rounds=300), JOINT, atol=1e-5)


def test_scaffold_without_its_control_is_biased():
    scaffold = algorithms.scaffold(quadratic, LR, participation=1.0)

    def forgetful(model, replica, state, data, ctx):
        zero = optax.tree.zeros_like(state)
        return scaffold.client.update(model, replica._replace(control=zero), zero, data, ctx)

    broken = scaffold._replace(client=scaffold.client._replace(update=forgetful))
    assert np.abs(solve(broken, rounds=300) - JOINT).max() > 0.05


@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0])
def test_scaffold_is_unaffected_by_gradient_dissimilarity(spread):
    """The paper's two clients: f_1 + f_2 does not depend on how far apart they pull (section 6)."""

    def loss_fn(params, model, batch, key):
        del model, key
        loss = jnp.mean(0.5 * params**2 + batch * params)
        return loss, {"loss": loss}

    arrays = [np.float32([spread]), np.float32([-spread])]
    clients = fp.ArrayClients(arrays, batch_size=1, local_steps=10)
    algorithm = algorithms.scaffold(loss_fn, 0.05, participation=1.0)
    start = jnp.ones(())
    losses = [r["loss"] for _, r in fp.run(algorithm, None, clients, params=start, rounds=2)]
    state = list(fp.run(algorithm, None, clients, params=start, rounds=60))[-1][0]
    assert np.isfinite(losses).all()
    assert abs(float(state.shared.params)) < 1e-4 * max(1.0, spread)


def test_one_step_is_a_central_step():
    params = jnp.asarray(RNG.normal(size=DIM), jnp.float32)
    found = solve(
        algorithms.fed_avg(quadratic, optax.sgd(LR)), rounds=1, local_steps=1, params=params
    )
    gradient = (CURVATURE * (np.asarray(params) - MINIMUM)).mean(0)
    np.testing.assert_allclose(found, params - LR * gradient, rtol=1e-5, atol=1e-6)


def test_a_federation_of_one_is_plain_training():
    clients = fp.ArrayClients(
        [{"a": np.float32(CURVATURE), "b": np.float32(MINIMUM)}], batch_size=2, local_steps=6
    )
    start = jnp.ones(DIM)
    algorithm = algorithms.fed_avg(quadratic, optax.adam(0.05))
    state, _ = next(fp.run(algorithm, None, clients, params=start, rounds=1))
    from fedjax_post.simulate.cohort import data_rng

    data = clients.visit(0, data_rng(0, 0, 0))
    params, tx = start, optax.adam(0.05)
    opt_state = tx.init(params)
    for step in range(6):
        batch = jax.tree.map(lambda x, step=step: x[step], data.batches)
        grads = jax.grad(lambda p, batch=batch: quadratic(p, None, batch, None)[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.shared, params, rtol=1e-6, atol=1e-7)


def test_prox_zero_is_fed_avg():
    fed_avg = solve(algorithms.fed_avg(quadratic, optax.adam(LR)), rounds=5)
    fed_prox = solve(algorithms.fed_prox(quadratic, optax.adam(LR), mu=0.0), rounds=5)
    np.testing.assert_array_equal(fed_avg, fed_prox)


def test_first_scaffold_round_is_fed_avg():
    fed_avg = solve(algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly), rounds=1)
    scaffold = solve(algorithms.scaffold(quadratic, LR, participation=1.0), rounds=1)
    np.testing.assert_allclose(fed_avg, scaffold, rtol=1e-6)


def test_a_constant_schedule_is_the_constant():
    """SCAFFOLD divides by the step size that was really used."""
    halving = lambda round: LR * 0.5**round
    algorithm = algorithms.scaffold(quadratic, halving, participation=1.0)
    clients = quadratic_clients(STEPS)
    states = [s for s, _ in fp.run(algorithm, None, clients, params=jnp.zeros(DIM), rounds=2)]
    # after a round whose x stays at x, c_k is the mean gradient along the walk: bounded by the
    # gradients themselves, whatever the step size was
    largest = np.abs(CURVATURE * MINIMUM).max() * 2
    assert np.abs(states[-1].shared.control).max() < largest
    constant = algorithms.scaffold(quadratic, lambda round: LR, participation=1.0)
    plain = algorithms.scaffold(quadratic, LR, participation=1.0)
    np.testing.assert_array_equal(solve(constant, rounds=3), solve(plain, rounds=3))


def literal(kind, updates, *, lr, b1, b2, tau):
    """Algorithm 2 of arXiv:2003.00295, read off the page, in float64."""
    x, m, v = np.zeros(DIM), np.zeros(DIM), np.full(DIM, tau**2)
    for update in updates:
        m = b1 * m + (1 - b1) * update
        if kind == "adagrad":
            v = v + m**2
        elif kind == "yogi":
            v = v - (1 - b2) * m**2 * np.sign(v - m**2)
        else:
            v = b2 * v + (1 - b2) * m**2
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("kind", ["adam", "yogi", "adagrad"])
def test_literal_server_is_algorithm_2(kind):
    from fedjax_post.core import servers

    updates = RNG.normal(size=(6, DIM)) * 0.01
    settings = {"b1": 0.9, "tau": 1e-3} | ({} if kind == "adagrad" else {"b2": 0.99})
    server = servers.server_optimizer(getattr(servers, f"literal_{kind}")(0.1, **settings))
    shared = jnp.zeros(DIM)
    state = server.init(shared)
    for update in updates:
        shared, state = server.update(jnp.float32(update), state, shared)
    expected = literal(kind, updates, lr=0.1, b1=0.9, b2=0.99, tau=1e-3)
    np.testing.assert_allclose(shared, expected, rtol=1e-4)


def test_the_two_adams_differ():
    """Which is why they have two names."""
    settings = {"server_lr": 0.1, "weigh_fn": uniformly}
    one = solve(algorithms.fed_adam(quadratic, optax.sgd(LR), **settings), rounds=3)
    other = solve(algorithms.fed_adam_optax(quadratic, optax.sgd(LR), **settings), rounds=3)
    assert np.abs(one - other).max() > 1e-3


def test_momentum_zero_is_fed_avg():
    one = solve(algorithms.fed_avg(quadratic, optax.sgd(LR)), rounds=4)
    other = solve(algorithms.fed_avg_m(quadratic, optax.sgd(LR), momentum=0.0), rounds=4)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 3), (3, 5)])
def test_chunk_size_does_not_matter(one, other):
    algorithm = algorithms.fed_avg(quadratic, optax.adam(LR))
    results = []
    for chunk_size in (one, other):
        plan = fp.Plan(chunk_size=chunk_size)
        clients = quadratic_clients(3)
        run = fp.run(algorithm, None, clients, params=jnp.zeros(DIM), rounds=3, plan=plan)
        results.append(list(run)[-1][0].shared)
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("participation", [0.0, 1.5])
def test_participation_is_checked(participation):
    with pytest.raises(ValueError, match=r"participation must be in \(0, 1\]"):
        algorithms.scaffold(quadratic, LR, participation=participation)


def test_negative_mu_is_refused():
    with pytest.raises(ValueError, match="mu must not be negative, got -1"):
        algorithms.fed_prox(quadratic, optax.sgd(LR), mu=-1)
