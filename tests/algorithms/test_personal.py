"""Personal models: their fixed points, what they do not change, and what is not sent."""

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
from fedjax_post.core import engine, uniformly
from fedjax_post.simulate.personal import read_clients
from fedjax_post.simulate.run import wire_bytes_of
from fedjax_post.testing import toy_clients, toy_lora, toy_loss, toy_model, toy_params

FED_AVG = algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly)
SGD = optax.sgd(LR)


def personal(algorithm, rounds, directory, *, start=None):
    """Every client's own parameters after a run, `[clients, ...]`, and the last state."""
    clients = quadratic_clients(STEPS)
    start = jnp.zeros(DIM) if start is None else start
    plan = fp.Plan(directory=directory)
    run = fp.run(algorithm, None, clients, params=start, rounds=rounds, plan=plan)
    state = list(run)[-1][0]
    states = read_clients(directory, algorithm, None, clients, params=start).states
    one = lambda client: engine.deployed(algorithm, None, state, client)[1]
    return jax.vmap(one)(states), state


@pytest.mark.parametrize("mu", [0.0, 0.5, 5.0])
def test_ditto_rests_where_the_closed_form_says(mu, tmp_path):
    """v_k = (a_k b_k + mu w) / (a_k + mu), w the shared model."""
    algorithm = algorithms.ditto(FED_AVG, quadratic, client_tx=SGD, mu=mu)
    own, state = personal(algorithm, 150, tmp_path)
    w = np.asarray(state.shared)
    expected = (CURVATURE * MINIMUM + mu * w) / (CURVATURE + mu)
    np.testing.assert_allclose(own, expected, atol=2e-3)


BASES = {
    "fed_avg": FED_AVG,
    "scaffold": algorithms.scaffold(quadratic, LR, participation=1.0),
    "fed_dyn": algorithms.fed_dyn(quadratic, SGD, alpha=0.5, participation=1.0),
    "mime": algorithms.mime(quadratic, SGD),
    "apfl": algorithms.apfl(quadratic, SGD),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_ditto_leaves_the_shared_model_alone(base):
    wrapped = algorithms.ditto(base, quadratic, client_tx=SGD, mu=0.5)
    np.testing.assert_array_equal(solve(wrapped, rounds=3), solve(base, rounds=3))
    sizes = [wire_bytes_of(a, None, quadratic_clients(2), jnp.zeros(DIM)) for a in (wrapped, base)]
    assert sizes[0] == sizes[1]


LORA = {
    name: getattr(algorithms, name)(toy_lora.toy_loss, optax.sgd(0.05))
    for name in ("flora", "fed_sa_lora", "het_lora")
}


@pytest.mark.heavy
@pytest.mark.parametrize("base", LORA.values(), ids=LORA)
def test_ditto_goes_over_algorithms_of_adapters(base, tmp_path):
    """What is shared and what is billed stay; every client has a model of its own to evaluate."""
    model, clients, params = (
        toy_lora.toy_model(),
        toy_lora.toy_clients(),
        toy_lora.toy_params(),
    )
    wrapped = algorithms.ditto(base, toy_lora.toy_loss, client_tx=optax.sgd(0.05), mu=0.1)
    ends, bills = [], []
    for algorithm, folder in ((wrapped, tmp_path), (base, None)):
        plan = fp.Plan(directory=folder)
        run = list(fp.run(algorithm, model, clients, params=params, rounds=3, plan=plan))
        ends.append(run[-1][0])
        bills.append([(record["bytes_up"], record["bytes_down"]) for _, record in run])
    assert bills[0] == bills[1]
    jax.tree.map(np.testing.assert_array_equal, ends[0].shared, ends[1].shared)
    kept = read_clients(tmp_path, wrapped, model, clients, params=params)
    client = jax.tree.map(lambda x: x[1], kept.states)
    own_model, own = engine.deployed(wrapped, model, ends[0], client)
    batch = jax.tree.map(lambda x: x[0], clients.visit(1, np.random.default_rng(0)).batches)
    loss, _ = toy_lora.toy_loss(own, own_model, batch, jax.random.key(0))
    start, _ = toy_lora.toy_loss(params, model, batch, jax.random.key(0))
    assert loss < start


def shifted(params, model, batch, key):
    """A body that all share, and a head that moves the minimum."""
    return quadratic(params["body"] + params["head"], model, batch, key)


START = {"body": jnp.zeros(DIM), "head": jnp.zeros(DIM)}


def test_fed_rep_is_its_loop_written_out(tmp_path):
    algorithm = algorithms.fed_rep(shifted, SGD, local_pattern="^head$", weigh_fn=uniformly)
    own, state = personal(algorithm, 3, tmp_path, start=START)
    body, heads = np.zeros(DIM), np.zeros((CLIENTS, DIM))
    for _ in range(3):
        ends = np.tile(body, (CLIENTS, 1))
        for _ in range(STEPS):  # heads first, under the body as it was sent
            heads = heads - LR * CURVATURE * (body + heads - MINIMUM)
        for _ in range(STEPS):
            ends = ends - LR * CURVATURE * (ends + heads - MINIMUM)
        body = ends.mean(0)
    np.testing.assert_allclose(own["head"], heads, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.shared.body["body"], body, rtol=1e-4, atol=1e-6)
    assert state.shared.body["head"] is None
    np.testing.assert_array_equal(state.shared.head["head"], START["head"])


def test_heads_fit_every_client_where_one_model_cannot(tmp_path):
    algorithm = algorithms.fed_rep(shifted, SGD, local_pattern="head", weigh_fn=uniformly)
    own, _ = personal(algorithm, 60, tmp_path, start=START)
    np.testing.assert_allclose(own["body"] + own["head"], MINIMUM, atol=1e-2)
    assert np.abs(MINIMUM - JOINT).max() > 0.5


@pytest.mark.parametrize("name", ["fed_avg", "scaffold"])
def test_a_local_part_never_travels(name):
    make = {
        "fed_avg": lambda loss: algorithms.fed_avg(loss, SGD),
        "scaffold": lambda loss: algorithms.scaffold(loss, LR, participation=1.0),
    }[name]
    is_local = lambda path: path == "bias"
    part = algorithms.local_part(make, toy_loss, client_tx=SGD, is_local=is_local)
    data = toy_model(), toy_clients(), toy_params()
    whole, some = (wire_bytes_of(a, *data) for a in (make(toy_loss), part))
    trees = {"fed_avg": 1, "scaffold": 2}[name]
    bias = toy_params()["bias"].nbytes
    assert (whole.up - some.up, whole.down - some.down) == (trees * bias, trees * bias)


@pytest.mark.parametrize("pattern", ["nothing", "."])
def test_a_local_part_is_some_but_not_all(pattern):
    algorithm = algorithms.fed_rep(shifted, SGD, local_pattern=pattern)
    with pytest.raises(ValueError, match=r"some but not all of the parameters \['body', 'head'\]"):
        algorithm.init(START)


def test_apfl_is_its_loop_written_out(tmp_path):
    settings = {"own_share": 0.3, "share_lr": 0.05, "weigh_fn": uniformly}
    own, state = personal(algorithms.apfl(quadratic, SGD, **settings), 3, tmp_path)
    shared, mine, share = np.zeros(DIM), np.zeros((CLIENTS, DIM)), np.full((CLIENTS, 1), 0.3)
    for _ in range(3):
        w = np.tile(shared, (CLIENTS, 1))
        for _ in range(STEPS):
            slope = CURVATURE * (share * mine + (1 - share) * w - MINIMUM)
            new_share = share - 0.05 * ((mine - w) * slope).sum(1, keepdims=True)
            mine = mine - LR * share * slope
            w = w - LR * CURVATURE * (w - MINIMUM)
            share = np.clip(new_share, 0, 1)
        shared = w.mean(0)
    np.testing.assert_allclose(state.shared, shared, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(own, share * mine + (1 - share) * shared, rtol=1e-4, atol=1e-5)


def test_apfl_shares_what_fed_avg_shares():
    one = solve(algorithms.apfl(quadratic, SGD, weigh_fn=uniformly), rounds=3)
    np.testing.assert_allclose(one, solve(FED_AVG, rounds=3), rtol=1e-6)


@pytest.mark.parametrize("own_share", [0.0, 1.0])
def test_apfl_at_its_ends(own_share, tmp_path):
    """Share 0 serves the shared model, share 1 a model trained alone."""
    algorithm = algorithms.apfl(quadratic, SGD, own_share=own_share, share_lr=0.0)
    own, state = personal(algorithm, 4, tmp_path)
    alone = MINIMUM * (1 - (1 - LR * CURVATURE) ** (4 * STEPS))
    expected = alone if own_share else np.tile(np.asarray(state.shared), (CLIENTS, 1))
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: algorithms.ditto_fed_avg(quadratic, SGD, mu=-1), "mu must not be negative"),
        (lambda: algorithms.apfl(quadratic, SGD, own_share=1.5), r"own_share must be in \[0, 1\]"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
