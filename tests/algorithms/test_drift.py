"""Algorithms under client drift and unequal work, against closed forms on quadratics."""

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
from fedjax_post import algorithms, core
from fedjax_post.core import ClientData, uniformly
from fedjax_post.simulate.personal import read_clients

UNEQUAL = np.array([1, 2, 4, 8, 8])  # steps of each client


class UnequalClients:
    """The quadratic clients, each with a number of steps of its own."""

    def __len__(self):
        return CLIENTS

    def num_steps(self, client_id):
        return int(UNEQUAL[client_id])

    def visit(self, client_id, rng):
        rows = {"a": CURVATURE[client_id], "b": MINIMUM[client_id]}
        repeat = lambda x: np.broadcast_to(np.float32(x), (UNEQUAL.max(), 1, DIM))
        batches = {name: repeat(row) for name, row in rows.items()}
        taken = np.arange(UNEQUAL.max()) < UNEQUAL[client_id]
        one = np.float32(1)
        return ClientData(batches, taken, one, one, np.int32(0), one)


def settle(algorithm, rounds):
    clients, start = UnequalClients(), jnp.zeros(DIM)
    state = list(fp.run(algorithm, None, clients, params=start, rounds=rounds))[-1][0]
    return np.asarray(fp.deployed(algorithm, None, state)[1])


def balance(pull):
    """Where `sum_k pull_k (b_k - x)` is zero."""
    return (pull * MINIMUM).sum(0) / pull.sum(0)


def moved(learning_rate):
    """The share of the way to its own minimum that each client goes in its steps."""
    return 1 - (1 - learning_rate * CURVATURE) ** UNEQUAL[:, None]


@pytest.mark.heavy
def test_fed_avg_and_fed_nova_rest_where_the_closed_forms_say():
    fed_avg = algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly)
    np.testing.assert_allclose(settle(fed_avg, 200), balance(moved(LR)), atol=1e-5)
    fed_nova = algorithms.fed_nova(quadratic, optax.sgd(LR))
    expected = balance(moved(LR) / UNEQUAL[:, None])
    np.testing.assert_allclose(settle(fed_nova, 200), expected, atol=1e-5)


@pytest.mark.heavy
def test_fed_nova_is_unbiased_under_unequal_steps_where_fed_avg_is_not():
    """To first order in the step size, which leaves nothing of the drift but its bias."""
    small = 4e-3
    fed_nova = settle(algorithms.fed_nova(quadratic, optax.sgd(small)), 700)
    fed_avg = settle(algorithms.fed_avg(quadratic, optax.sgd(small), weigh_fn=uniformly), 700)
    assert np.abs(fed_nova - JOINT).max() < 0.02
    assert np.abs(fed_avg - JOINT).max() > 0.1
    np.testing.assert_allclose(fed_avg, balance(CURVATURE * UNEQUAL[:, None]), atol=0.03)


@pytest.mark.heavy
def test_fed_nova_with_equal_steps_is_fed_avg():
    for tx in (optax.sgd(LR), optax.sgd(LR, 0.9), optax.adam(LR)):
        one = solve(algorithms.fed_nova(quadratic, tx), rounds=4)
        other = solve(algorithms.fed_avg(quadratic, tx, weigh_fn=uniformly), rounds=4)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_fed_nova_divides_by_the_papers_norm(rho):
    """|a|_1 = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho) for momentum (section 4.1)."""
    algorithm = algorithms.fed_nova(quadratic, optax.sgd(LR, rho))
    for k in range(CLIENTS):
        data, ctx = UnequalClients().visit(k, None), core.Context(jax.random.key(0), 0, k)
        upload, _, _ = algorithm.client.update(None, jnp.zeros(DIM), (), data, ctx)
        tau = UNEQUAL[k]
        norm = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
        np.testing.assert_allclose(upload.value.length, LR * norm, rtol=1e-5)


def test_fed_nova_divides_by_the_papers_norm_of_a_pull():
    """a_k = (1 - eta mu)^(tau - 1 - k) for a proximal pull."""
    mu, tau = 0.7, UNEQUAL[3]
    tx = optax.chain(core.add_proximal(mu), optax.sgd(LR))
    algorithm = algorithms.fed_nova(quadratic, tx)
    ctx = core.Context(jax.random.key(0), 0, 3)
    args = None, jnp.zeros(DIM), (), UnequalClients().visit(3, None), ctx
    norm = ((1 - LR * mu) ** np.arange(tau)).sum()
    np.testing.assert_allclose(algorithm.client.update(*args)[0].value.length, LR * norm, rtol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_fed_dyn_reaches_the_joint_optimum(alpha):
    algorithm = algorithms.fed_dyn(quadratic, optax.sgd(LR), alpha=alpha, participation=1.0)
    np.testing.assert_allclose(solve(algorithm, rounds=300), JOINT, atol=1e-4)
    np.testing.assert_allclose(settle(algorithm, 500), JOINT, atol=1e-3)


def test_fed_dyn_without_its_bend_is_biased():
    fed_dyn = algorithms.fed_dyn(quadratic, optax.sgd(LR), alpha=0.5, participation=1.0)

    def forgetful(model, replica, state, data, ctx):
        zero = optax.tree.zeros_like(state)
        return fed_dyn.client.update(model, replica, zero, data, ctx)

    broken = fed_dyn._replace(client=fed_dyn.client._replace(update=forgetful))
    assert np.abs(solve(broken, rounds=300) - JOINT).max() > 0.05


@pytest.mark.heavy
def test_fed_dyn_with_some_of_the_clients_reaches_the_joint_optimum(tmp_path):
    """The server's h is the mean over all clients, though only some are seen in a round."""
    algorithm = algorithms.fed_dyn(quadratic, optax.sgd(LR), alpha=2.0, participation=2 / CLIENTS)
    clients, start = UnequalClients(), jnp.zeros(DIM)
    plan = fp.Plan(sampler=fp.uniform(2), directory=tmp_path)
    state = list(fp.run(algorithm, None, clients, params=start, rounds=3, plan=plan))[-1][0]
    kept = read_clients(tmp_path, algorithm, None, clients, params=start)
    mean = np.asarray(kept.states.local).sum(0) / CLIENTS
    np.testing.assert_allclose(state.server, mean, rtol=1e-5, atol=1e-7)
    plan = fp.Plan(sampler=fp.uniform(2))
    runs = fp.run(algorithm, None, clients, params=start, rounds=900, plan=plan)
    np.testing.assert_allclose(list(runs)[-1][0].shared, JOINT, atol=2e-2)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["scaffold", "fed_dyn"])
def test_cohorts_of_unlike_sizes_leave_a_gap_that_a_fixed_mean_closes(name):
    """As the heads of both say: c is no longer the mean of the c_k, and training ends there."""
    share = 0.6
    algorithm = {
        "scaffold": lambda: algorithms.scaffold(quadratic, 0.05, participation=share),
        "fed_dyn": lambda: algorithms.fed_dyn(
            quadratic, optax.sgd(0.05), alpha=1.0, participation=share
        ),
    }[name]()
    unlike = fp.Plan(sampler=lambda n, rng: np.flatnonzero(rng.random(n) < share))

    def slope_at_rest(algorithm):
        clients = quadratic_clients(4)
        run = fp.run(algorithm, None, clients, params=jnp.zeros(DIM), rounds=400, plan=unlike)
        _, x = fp.deployed(algorithm, None, list(run)[-1][0])
        return np.abs((CURVATURE * (np.asarray(x) - MINIMUM)).mean(0)).max()

    fixed = core.with_aggregate(algorithm, core.fixed_mean(share * CLIENTS))
    assert slope_at_rest(algorithm) > 0.01
    assert slope_at_rest(fixed) < 1e-3


def test_scaffold_option_1_reaches_the_joint_optimum():
    algorithm = algorithms.scaffold_option_1(quadratic, LR, participation=1.0)
    np.testing.assert_allclose(solve(algorithm, rounds=300), JOINT, atol=1e-5)


def test_scaffold_option_1_keeps_gradients_at_the_shared_model():
    algorithm = algorithms.scaffold_option_1(quadratic, LR, participation=1.0)
    replica = algorithm.init(jnp.ones(DIM))
    data, ctx = UnequalClients().visit(2, None), core.Context(jax.random.key(0), 0, 2)
    _, c_k, _ = algorithm.client.update(None, replica, jnp.zeros(DIM), data, ctx)
    np.testing.assert_allclose(c_k, CURVATURE[2] * (1 - MINIMUM[2]), rtol=1e-5)


@pytest.mark.parametrize("tx", [optax.sgd(LR), optax.sgd(LR / 4, 0.8)], ids=["sgd", "momentum"])
def test_mime_reaches_the_joint_optimum(tx):
    algorithm = algorithms.mime(quadratic, tx)
    np.testing.assert_allclose(solve(algorithm, rounds=400), JOINT, atol=1e-4)


def test_mime_lite_is_biased():
    """Which is what the correction is for."""
    algorithm = algorithms.mime_lite(quadratic, optax.sgd(LR / 4, 0.8))
    assert np.abs(solve(algorithm, rounds=400) - JOINT).max() > 0.01


@pytest.mark.parametrize(
    ("make", "rounds", "tx"),
    [
        (algorithms.mime, 8, optax.sgd(LR, 0.9)),
        (algorithms.mime, 8, optax.adam(LR)),
        # not Adam: a mean of its steps is no step along the mean gradient
        (algorithms.mime_lite, 4, optax.sgd(LR, 0.9)),
    ],
    ids=["mime, momentum", "mime, adam", "mime_lite, momentum"],
)
def test_mime_of_one_step_is_the_central_optimizer(make, rounds, tx):
    found = solve(make(quadratic, tx), rounds=rounds, local_steps=1)
    x, state = jnp.zeros(DIM), tx.init(jnp.zeros(DIM))
    for _ in range(4):
        grads = jnp.float32((CURVATURE * (np.asarray(x) - MINIMUM)).mean(0))
        updates, state = tx.update(grads, state, x)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_mime_lite_of_plain_sgd_is_fed_avg():
    one = solve(algorithms.mime_lite(quadratic, optax.sgd(LR)), rounds=4)
    other = solve(algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly), rounds=4)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_di_loco_keeps_inner_states_and_takes_nesterov_steps():
    """Against the loop of Algorithm 1, written out."""
    found = solve(algorithms.di_loco(quadratic, optax.adamw(LR), weigh_fn=uniformly), rounds=3)
    inner, outer = optax.adamw(LR), optax.sgd(0.7, 0.9, nesterov=True)
    x = jnp.zeros(DIM)
    outer_state, inner_states = outer.init(x), [inner.init(x) for _ in range(CLIENTS)]
    for _ in range(3):
        ends = []
        for k in range(CLIENTS):
            y = x
            for _ in range(STEPS):
                grads = jnp.float32(CURVATURE[k]) * (y - jnp.float32(MINIMUM[k]))
                updates, inner_states[k] = inner.update(grads, inner_states[k], y)
                y = optax.apply_updates(y, updates)
            ends.append(y)
        updates, outer_state = outer.update(x - sum(ends) / CLIENTS, outer_state, x)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0, "participation": 1.0}, "alpha must be positive, got 0"),
        ({"alpha": 1.0, "participation": 2}, r"participation must be in \(0, 1\], got 2"),
    ],
)
def test_fed_dyn_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        algorithms.fed_dyn(quadratic, optax.sgd(LR), **settings)
