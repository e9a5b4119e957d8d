"""FedDPA: the shared adapter equals FedAvg's, the own one a training loop written out densely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_oracle import ALPHA, SGD, assert_close, assert_far, change_of, start_at, visits

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.personal import read_clients
from fedjax_post.simulate.visit import contexts_of
from fedjax_post.testing import toy_lora

SHARE, LR = 0.3, 0.05
PARAMS, SCALE = start_at(), ALPHA / toy_lora.RANK
MODEL, CLIENTS = toy_lora.toy_model(), toy_lora.toy_clients()
FED_AVG = algorithms.fed_avg(toy_lora.toy_loss, SGD)
T = algorithms.fed_dpa(toy_lora.toy_loss, SGD, share=SHARE)
F = algorithms.fed_dpa_f(toy_lora.toy_loss, SGD, share=SHARE, tune_after=2)


def played(algorithm, rounds, folder=None):
    """The state after each round, the records, and what the clients hold in the end."""
    plan = fp.Plan(directory=folder)
    run = fp.run(algorithm, MODEL, CLIENTS, params=PARAMS, rounds=rounds, plan=plan)
    steps = list(run)
    held = None
    if folder is not None:
        held = read_clients(folder, algorithm, MODEL, CLIENTS, params=PARAMS).states
    return [state for state, _ in steps], [record for _, record in steps], held


def pair(params):
    """A and B, float64."""
    both = params["lora"]["layers"]["mix"]
    return np.asarray(both["a"], np.float64), np.asarray(both["b"], np.float64)


def trained_beside(shared, own, batches):
    """An own adapter after SGD steps on x (W + scale ((1 - s) A B + s A_k B_k)), float64."""
    kernel = np.asarray(MODEL.variables["params"]["layers"]["mix"]["kernel"], np.float64)
    (a, b), (own_a, own_b) = shared, own
    base = kernel + (1 - SHARE) * SCALE * a @ b
    for x, y in zip(np.float64(batches["x"]), np.float64(batches["y"]), strict=True):
        error = np.einsum("bni,nio->bno", x, base + SHARE * SCALE * own_a @ own_b) - y
        slope = SHARE * SCALE * np.einsum("bni,bno->nio", x, error) / len(x)
        own_a, own_b = (
            own_a - LR * slope @ own_b.swapaxes(1, 2),
            own_b - LR * own_a.swapaxes(1, 2) @ slope,
        )
    return own_a, own_b


@pytest.fixture(scope="module")
def of_t(tmp_path_factory):
    return played(T, 2, tmp_path_factory.mktemp("t"))


@pytest.fixture(scope="module")
def of_f(tmp_path_factory):
    return played(F, 3, tmp_path_factory.mktemp("f"))


@pytest.mark.heavy
def test_t_shares_and_sends_what_fed_avg_does(of_t):
    states, records, _ = of_t
    others, bills, _ = played(FED_AVG, 2)
    for one, other in zip(states, others, strict=True):
        jax.tree.map(assert_close, one.shared, other.shared)
    sizes = [[(r["bytes_up"], r["bytes_down"]) for r in rs] for rs in (records, bills)]
    assert sizes[0] == sizes[1]


def test_t_trains_the_own_adapter_beside_the_shared_one_as_it_was_sent(of_t):
    """In the second round only, from B = 0 and an A of the client's own."""
    states, _, held = of_t
    sent = pair(states[0].shared)
    last = pair(states[1].shared)
    firsts = []
    for k in range(len(CLIENTS)):
        key = contexts_of(jax.random.key(0), jnp.int32(-1), jnp.arange(k, k + 1)).key[0]
        fresh = T.client.init(MODEL, PARAMS, key)
        own = [np.asarray(leaf["layers"]["mix"], np.float64) for leaf in fresh]
        assert not own[1].any()
        firsts.append(own[0])
        batches = CLIENTS.visit(k, data_rng(0, 1, k)).batches
        own_a, own_b = trained_beside(sent, own, batches)
        client = jax.tree.map(lambda x, k=k: x[k], held)
        found = change_of(T, states[1], client=client)
        expected = SCALE * ((1 - SHARE) * last[0] @ last[1] + SHARE * own_a @ own_b)
        assert_close(found, expected)
        assert_far(own_b, 0)
    assert_far(firsts[0], firsts[1])


def test_f_learns_together_then_each_alone(of_f):
    states, _, held = of_f
    others, _, _ = played(FED_AVG, 2)
    jax.tree.map(assert_close, states[1].shared, others[1].shared)
    jax.tree.map(np.testing.assert_array_equal, states[2].shared, states[1].shared)
    done = visits(states[1].shared, CLIENTS, round=2)
    shared = pair(states[1].shared)
    for k, own in enumerate(done):
        client = jax.tree.map(lambda x, k=k: x[k], held)
        expected = SCALE * ((1 - SHARE) * shared[0] @ shared[1] + SHARE * own.a @ own.b)
        assert_close(change_of(F, states[2], client=client), expected)
    assert_far(done[0].b, done[1].b)


def test_f_serves_the_shared_adapter_to_who_has_not_tuned(tmp_path):
    states, _, held = played(F, 1, tmp_path)
    client = jax.tree.map(lambda x: x[0], held)
    assert_close(change_of(F, states[0], client=client), change_of(F, states[0]))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_share(share, of_t):
    states, _, held = of_t
    client = jax.tree.map(lambda x: x[2], held)
    algorithm = algorithms.fed_dpa(toy_lora.toy_loss, SGD, share=share)
    found = change_of(algorithm, states[1], client=client)
    own = [np.asarray(leaf["layers"]["mix"], np.float64) for leaf in client.local]
    a, b = own if share else pair(states[1].shared)
    assert_close(found, SCALE * a @ b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: algorithms.fed_dpa(toy_lora.toy_loss, SGD, share=1.5),
            r"share must be in \[0, 1\]",
        ),
        (
            lambda: algorithms.fed_dpa_f(toy_lora.toy_loss, SGD, tune_after=-1),
            "tune_after must not be negative",
        ),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
