"""Results of public codes on fixed arrays, and their errors.

Every code was run once on a CPU (torch 2.13) on the clients below, which are sines and
cosines, so that anybody can run it again; numbers are rounded to six digits. Models are
softmax regressions: weights row by row, then biases.

| code | commit | what was run |
| --- | --- | --- |
| alpemreacar/FedDyn | 48a19fa | `train_FedAvg`, `train_FedProx`, `train_SCAFFOLD`, `train_FedDyn` |
| FedLab 1.3.0 | PyPI | SCAFFOLD and FedProx (the same numbers to 2e-7), FedDyn |
| apple/pfl-research, pfl 0.6.0 | PyPI | `SCAFFOLD`, option II, its PyTorch bridge |
| JYWa/FedNova | 47b4e09 | the optimizer `FedNova`, an all-reduce over threads |
| litian96/fair_flearn | f097971 | the server of q-FedAvg, its clients replaced by ours |
| lgcollins/FedRep | d82e629 | `LocalUpdate` and `LocalUpdateAPFL` |
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms, core
from fedjax_post.core import ClientData, engine, uniformly
from fedjax_post.simulate.personal import read_clients
from tests.cohorts import by_round

CLIENTS, EXAMPLES, FEATURES, CLASSES = 3, 4, 2, 3
X = np.float32(1.5 * np.sin(1 + 0.9 * np.arange(24))).reshape(CLIENTS, EXAMPLES, FEATURES)
Y = (2 * np.arange(12).reshape(CLIENTS, EXAMPLES) + np.arange(CLIENTS)[:, None] ** 2) % CLASSES
WEIGHTS = np.float32(0.3 * np.cos(np.arange(6))).reshape(CLASSES, FEATURES)
START = np.concatenate([WEIGHTS.ravel(), np.float32(0.1 * np.cos(np.arange(3)))])
COHORTS = [[0, 2], [1, 2], [0, 2], [0, 1]]
ARRAYS = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
UNIFORM = {"weigh_fn": uniformly}


def cross_entropy(logits, labels):
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return losses.mean(), {"loss": losses.mean()}


def softmax_loss(params, model, batch, key):
    del model, key
    logits = batch["x"] @ params[:6].reshape(CLASSES, FEATURES).T + params[None, 6:]
    return cross_entropy(logits, batch["y"])


def gradient(params, client):
    return np.asarray(jax.grad(softmax_loss, has_aux=True)(params, None, ARRAYS[client], None)[0])


def play(algorithm, cohorts, *, clients=None, start=START, directory=None):
    """The last state; three full-batch steps a visit unless `clients` says otherwise."""
    clients = clients or fp.ArrayClients(ARRAYS, batch_size=EXAMPLES, local_steps=3)
    plan = fp.Plan(sampler=by_round(cohorts), chunk_size=2, directory=directory)
    start = jax.tree.map(jnp.asarray, start)
    rounds = len(cohorts)
    return list(fp.run(algorithm, None, clients, params=start, rounds=rounds, plan=plan))[-1][0]


def params_after(algorithm, cohorts=COHORTS, **kwargs):
    return np.asarray(fp.deployed(algorithm, None, play(algorithm, cohorts, **kwargs))[1])


def assert_published(found, published):
    np.testing.assert_allclose(found, np.array(published), atol=4e-6)


SGD, TWO_THIRDS = optax.sgd(0.5), {"participation": 2 / 3}
SCAFFOLD = algorithms.scaffold(softmax_loss, 0.5, server_tx=optax.sgd(0.8), **TWO_THIRDS)
FED_DYN = algorithms.fed_dyn(softmax_loss, SGD, alpha=0.3, **TWO_THIRDS)
AFTER_FOUR_ROUNDS = {
    "fed_avg": (
        algorithms.fed_avg(softmax_loss, SGD, **UNIFORM),
        [0.52816, 1.140585, -0.998976, -0.32974, 0.449879, -0.860654, 0.084076, -0.206831, 0.23517],
    ),
    "fed_prox": (
        algorithms.fed_prox(softmax_loss, SGD, mu=0.4, **UNIFORM),
        [0.492062, 1.004392, -0.884764, -0.34246, 0.371765, -0.711741, 0.084096, -0.16933, 0.19765],
    ),
    "scaffold": (
        SCAFFOLD,
        [0.464548, 0.965872, -0.89649, -0.317863, 0.411005, -0.697818,
         0.030856, -0.157789, 0.239349],
    ),
    "fed_dyn": (
        FED_DYN,
        [0.547969, 1.591735, -1.461783, -0.302222, 0.892877, -1.339322,
         -0.012843, -0.342527, 0.467786],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER_FOUR_ROUNDS)
def test_four_rounds_with_two_of_three_clients_are_fed_dyns_authors(name):
    algorithm, published = AFTER_FOUR_ROUNDS[name]
    assert_published(params_after(algorithm), published)


def test_pfls_scaffold_has_the_sign_of_its_controls_wrong():
    """Its model difference is y - x, where the paper's is x - y: controls double the drift."""
    pfl = [0.507898, 0.805131, -0.749397, -0.321864, 0.220562, -0.533075,
           0.098457, -0.091912, 0.105871]  # fmt: skip
    ours = algorithms.scaffold(softmax_loss, 0.5, participation=1.0, server_tx=optax.sgd(0.8))

    def flipped(model, replica, c_k, data, ctx):
        upload, new, metrics = ours.client.update(model, replica, c_k, data, ctx)
        new = 2 * (c_k - replica.control) - new
        value = upload.value._replace(control=new - c_k)
        return upload._replace(value=value), new, metrics

    everybody = [[0, 1, 2]] * 3
    wrong = ours._replace(client=ours.client._replace(update=flipped))
    assert_published(params_after(wrong, everybody), pfl)
    assert np.abs(params_after(ours, everybody) - pfl).max() > 0.05
    np.testing.assert_allclose(
        params_after(wrong, everybody[:1]), params_after(ours, everybody[:1]), rtol=1e-6
    )


def test_fed_labs_fed_dyn_trains_without_its_terms():
    """Its linear and its proximal term are taken of detached parameters, so that neither has
    a gradient; and its h counts x once where it should count it for every client.
    """
    fed_lab = [1.878942, 5.393445, -4.749879, -2.198573, 2.739628, -3.50725,
               0.018169, -1.248176, 1.935032]  # fmt: skip
    x, h, alpha = START, 0.0, 0.3
    for cohort in COHORTS:
        ends = []
        for k in cohort:
            y = x
            for _ in range(3):
                y = y - 0.5 * gradient(y, k)
            ends.append(y)
        h = h - alpha / CLIENTS * (sum(ends) - x)
        x = sum(ends) / len(cohort) - h / alpha
    np.testing.assert_allclose(x, fed_lab, atol=2e-5)
    assert np.abs(params_after(FED_DYN) - fed_lab).max() > 1


# --- FedNova ------------------------------------------------------------------------------

STEPS, SHARES = np.array([1, 3, 4]), np.array([0.5, 0.3, 0.2])


class UnequalClients:
    """The clients with a number of steps and a share of the examples each."""

    def __len__(self):
        return CLIENTS

    def visit(self, client_id, rng):
        repeat = lambda x: np.broadcast_to(x, (STEPS.max(), *x.shape))
        batches = jax.tree.map(repeat, ARRAYS[client_id])
        taken, one = np.arange(STEPS.max()) < STEPS[client_id], np.float32(1)
        examples = np.float32(10 * SHARES[client_id])
        return ClientData(batches, taken, examples, one, np.int32(0), one)

    def num_steps(self, client_id):
        return int(STEPS[client_id])


def fed_nova(tx):
    return algorithms.fed_nova(softmax_loss, tx)


def lengths(algorithm):
    """|a_k|_1 of the clients, steps of size 0.4."""
    found = []
    for k in range(CLIENTS):
        data, ctx = UnequalClients().visit(k, None), core.Context(jax.random.key(0), 0, k)
        upload, _, _ = algorithm.client.update(None, jnp.asarray(START), (), data, ctx)
        found.append(float(upload.value.length) / 0.4)
    return np.array(found)


@pytest.mark.parametrize(
    ("momentum", "published"),
    [
        (0.0, [0.542937, 0.761334, -0.648578, -0.376595, 0.084704, -0.434547,
               0.148335, -0.074026, 0.038107]),
        (0.9, [0.626122, 1.053028, -0.946024, -0.365858, 0.298965, -0.736978,
               0.118184, -0.141635, 0.135867]),
    ],
)  # fmt: skip
def test_fed_nova_is_its_authors(momentum, published):
    algorithm = fed_nova(optax.sgd(0.4, momentum))
    found = params_after(algorithm, [[0, 1, 2]] * 3, clients=UnequalClients())
    assert_published(found, published)


def test_fed_nova_under_a_pull_is_its_authors_but_for_the_servers_step():
    """They put back the mean number of steps, we the mean of what was divided out."""
    published = [0.43824, 0.44179, -0.348501, -0.359681, -0.110675, -0.131917,
                 0.148654, -0.002896, -0.033342]  # fmt: skip
    algorithm = fed_nova(optax.chain(core.add_proximal(0.3), optax.sgd(0.4)))
    norms = lengths(algorithm)
    np.testing.assert_allclose(norms, [1.0, 2.6544, 3.335872], rtol=1e-5)  # theirs, too
    step = params_after(algorithm, [[0, 1, 2]], clients=UnequalClients()) - START
    assert_published(START + step * (SHARES @ STEPS) / (SHARES @ norms), published)


def test_fed_novas_authors_count_steps_twice_under_momentum_and_a_pull():
    """Their norms under a pull of 1e-9: those of momentum, and one more for every step."""
    published = [2.0, 8.61, 13.049]
    algorithm = fed_nova(optax.chain(core.add_proximal(1e-9), optax.sgd(0.4, 0.9)))
    np.testing.assert_allclose(lengths(algorithm) + STEPS, published, rtol=1e-5)
    np.testing.assert_allclose(lengths(algorithm), lengths(fed_nova(optax.sgd(0.4, 0.9))))


# --- fairness and personal models -----------------------------------------------------------


def test_q_fed_avg_is_its_authors():
    published = [0.342458, 0.373044, -0.33567, -0.328973, -0.027725, -0.093879,
                 0.08374, -0.004053, 0.032728]  # fmt: skip
    algorithm = algorithms.q_fed_avg(softmax_loss, 0.5, q=2.5)
    assert_published(params_after(algorithm, [[0, 1, 2]] * 3), published)


def test_fed_rep_is_its_authors(tmp_path):
    """Two head steps, then two body steps, with their momentum and weight decay."""
    body = [[1.332642, 0.413674], [-0.245139, 1.059511]]
    heads = [
        [[0.698871, 0.670834], [-0.73082, -0.363065], [0.011016, -0.357567]],
        [[0.948513, 0.278518], [-0.434159, 0.063851], [-0.535287, -0.392166]],
        [[0.148905, 0.604614], [-0.73221, -0.301517], [0.562373, -0.352893]],
    ]

    def loss_fn(params, model, batch, key):
        del model, key
        return cross_entropy(batch["x"] @ params["body"].T @ params["head"].T, batch["y"])

    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.3, 0.5))
    algorithm = algorithms.fed_rep(loss_fn, tx, local_pattern="^head$", **UNIFORM)
    start = {"body": jnp.array([[1.0, 0.2], [-0.3, 0.8]]), "head": jnp.asarray(WEIGHTS)}
    clients = fp.ArrayClients(ARRAYS, batch_size=EXAMPLES, local_steps=2)
    kwargs = {"clients": clients, "start": start, "directory": tmp_path}
    state = play(algorithm, [[0, 1, 2]] * 3, **kwargs)
    own = read_clients(tmp_path, algorithm, None, clients, params=start).states
    one = lambda client: engine.deployed(algorithm, None, state, client)[1]
    found = jax.vmap(one)(own)
    assert_published(found["head"], heads)
    assert_published(found["body"], [body] * 3)


def test_fed_reps_apfl_mixes_with_weights_that_do_not_sum_to_one(tmp_path):
    """One step of client 0 from v = w = x: it is taken at (a + a) x, with w's momentum in it."""
    published = [0.351407, 0.30946, -0.227452, -0.353286, -0.144891, -0.005979,
                 0.134191, 0.027788, -0.049563]  # fmt: skip
    share, rate, momentum = 0.75, 0.3, 0.5
    decayed = lambda x: 1e-4 * np.where(np.arange(9) < 6, x, 0)
    mixed = 2 * share * START
    of_w = gradient(START, 0) + decayed(START)
    of_v = share * gradient(mixed, 0) + decayed(mixed)
    assert_published(START - rate * (of_v + momentum * of_w), published)
    right = START - rate * share * gradient(START, 0)
    clients = fp.ArrayClients(ARRAYS, batch_size=EXAMPLES, local_steps=1)
    algorithm = algorithms.apfl(softmax_loss, optax.sgd(rate), own_share=share, share_lr=0.0)
    kwargs = {"clients": clients, "directory": tmp_path}
    play(algorithm, [[0]], **kwargs)
    states = read_clients(tmp_path, algorithm, None, clients, params=jnp.asarray(START)).states
    np.testing.assert_allclose(states.local.own[0], right, rtol=1e-5)
    assert np.abs(right - published).max() > 0.04
