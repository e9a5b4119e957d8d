"""FedBPT: a round against pycma and against the round written out; masks and bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadratics import CLIENTS, DIM, MINIMUM, quadratic, quadratic_clients, solve

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.adapters.prompt import add_soft_prompt
from fedjax_post.algorithms.fed_bpt import corrected_sigma
from fedjax_post.blackbox import cma
from fedjax_post.blackbox.fitness import replace_tokens
from fedjax_post.blackbox.prompt_cma import prompt_at
from fedjax_post.core import algorithm as core
from fedjax_post.core import engine
from fedjax_post.objectives.choice import choice_loss
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.host import host
from fedjax_post.simulate.run import wire_bytes_of
from fedjax_post.testing.models import tiny_model

START = jnp.asarray([0.5, -0.2, 0.1])
SMALL = {"search_dim": 3, "num_points": 4, "generations": 3}


def visits(algorithm, state):
    """What every client sends in the first round."""
    replica, found = engine.broadcast(algorithm, state), []
    for k in range(CLIENTS):
        data = jax.tree.map(jnp.asarray, quadratic_clients(2).visit(k, data_rng(0, 0, k)))
        ctx = core.Context(jax.random.key(k), jnp.int32(0), jnp.int32(k))
        found.append(algorithm.client.update(None, replica, (), data, ctx)[0].value)
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


@pytest.fixture(scope="module")
def begun():
    algorithm = algorithms.fed_bpt(quadratic, **SMALL)
    state = engine.init(algorithm, START)
    return algorithm, state, jax.jit(lambda: visits(algorithm, state))()


@pytest.mark.heavy
def test_a_client_searches_from_the_servers_distribution(begun):
    """Its search, written out: the same points, told their mean losses."""
    algorithm, state, found = begun
    replica = engine.broadcast(algorithm, state)
    assert float(replica.projection.std()) > 0
    tell, search = jax.jit(cma.tell), replica.search
    data = quadratic_clients(2).visit(1, data_rng(0, 0, 1))

    def mean_loss(z):
        x, batches = prompt_at(replica, z), jax.tree.map(jnp.asarray, data.batches)
        losses = [
            quadratic(x, None, jax.tree.map(lambda b, i=i: b[i], batches), None)[0]
            for i in range(2)
        ]
        return sum(losses) / 2

    power = 0.0
    for key in jax.random.split(jax.random.split(jax.random.key(1))[0], 3):
        points = cma.ask(search, key, 4)
        power += float(search.sigma) ** 2
        search = tell(search, points, jnp.stack([mean_loss(z) for z in points]))
    np.testing.assert_allclose(found.mean[1], search.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.fitness[1], mean_loss(search.mean), rtol=1e-4)
    np.testing.assert_allclose(found.power[1], power, rtol=1e-5)


def test_the_server_takes_the_clients_as_one_generation_of_pycma(begun):
    published = pytest.importorskip("cma", reason="pip install -e '.[test]' brings pycma")
    algorithm, state, found = begun
    weights = jnp.ones(CLIENTS)
    shared, _ = algorithm.server.update((found, weights), (), state.shared)
    fitness = np.asarray(found.fitness, np.float64)
    better = np.argsort(fitness)[: CLIENTS // 2]
    step = np.sqrt(np.asarray(found.power)[better].mean() / (4 / 2))
    options = {"popsize": CLIENTS, "CMA_active": False, "verbose": -9, "CMA_mirrors": 0}
    es = published.CMAEvolutionStrategy(np.zeros(DIM), step, options | {"seed": 1})
    es.sm.C, es.sm.B, es.sm.D = np.eye(DIM), np.eye(DIM), np.ones(DIM)
    es.ask()
    es.tell(list(np.asarray(found.mean, np.float64)), list(fitness), check_points=False)
    np.testing.assert_allclose(shared.search.mean, es.mean, rtol=1e-5)
    np.testing.assert_allclose(shared.search.cov, es.sm.C, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(shared.search.sigma, es.sigma / step, rtol=1e-5)


def test_the_step_of_the_server_is_equation_6():
    rng = np.random.default_rng(0)
    sigmas, fitness = rng.uniform(0.5, 2, size=(6, 8)), rng.normal(size=6)  # [S, I]
    better = np.argsort(fitness)[:3]
    expected = 2 * np.sqrt((sigmas[better] ** 2).sum() / (6 * 5))
    found = corrected_sigma(jnp.asarray((sigmas**2).sum(1)), jnp.asarray(fitness), 5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with_nobody = [np.append(x, y) for x, y in (((sigmas**2).sum(1), 0.0), (fitness, np.inf))]
    np.testing.assert_allclose(
        corrected_sigma(*map(jnp.asarray, with_nobody), 5), expected, rtol=1e-6
    )


def test_a_dropped_client_was_not_there(begun):
    algorithm, state, found = begun
    spoilt = jax.tree.map(lambda x: x.at[2].set(0), found)
    weights = jnp.ones(CLIENTS).at[2].set(0)
    with_hole = algorithm.server.update((spoilt, weights), (), state.shared)[0]
    without = jax.tree.map(lambda x: jnp.delete(x, 2, axis=0), (found, weights))
    expected = algorithm.server.update(without, (), state.shared)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), with_hole, expected
    )


def test_it_begins_at_the_prompt_that_it_was_given():
    for factory in (algorithms.fed_bpt, algorithms.fed_avg_bbt, algorithms.fed_bbpt):
        small = {} if factory is algorithms.fed_bbpt else SMALL
        algorithm = factory(quadratic, **small)
        state = engine.init(algorithm, {"prompt": START})
        deployed = engine.deployed(algorithm, None, state)[1]
        np.testing.assert_array_equal(deployed["prompt"], START)


@pytest.mark.heavy
def test_the_projection_varies_the_prompt_as_it_varies_itself():
    """At sigma 1, by BBT's rule, and in proportion at others."""
    start = jax.random.normal(jax.random.key(3), (10, 64)) * 0.02
    for sigma in (1.0, 4.0):
        algorithm = algorithms.fed_bpt(quadratic, search_dim=50, search_sigma=sigma)
        replica = engine.broadcast(algorithm, engine.init(algorithm, start))
        (z,) = cma.ask(replica.search, jax.random.key(4), 1)
        spread = (prompt_at(replica, z) - start).std()
        np.testing.assert_allclose(spread, 0.02 * sigma, rtol=0.25)


@pytest.mark.parametrize(
    ("algorithm", "up", "down"),
    [
        (algorithms.fed_bpt(quadratic), 4 * 502 + 4, 4 * (500 + 1 + 500 * 501 // 2)),
        (algorithms.fed_bpt(quadratic, learn_cov=False), 4 * 502 + 4, 4 * 501),
        (algorithms.fed_avg_bbt(quadratic), 503004 + 4, 503004),
        (algorithms.fed_bbpt(quadratic, generator_rank=8), 4 * 8 * (1 + DIM) + 4, 32 * (1 + DIM)),
    ],
)
def test_what_clients_need_is_what_is_billed(algorithm, up, down):
    """The paper counts 500 numbers, 4 KB: half a megabyte goes down where C does."""
    sizes = wire_bytes_of(algorithm, None, quadratic_clients(2), START)
    assert (sizes.up, sizes.down) == (up, down)


def test_the_covariance_comes_through_the_wire():
    algorithm = algorithms.fed_bpt(quadratic, **SMALL)
    state = engine.init(algorithm, START)
    factor = jax.random.normal(jax.random.key(0), (3, 3))
    search = state.shared.search._replace(cov=factor @ factor.T)
    state = state._replace(shared=state.shared._replace(search=search))
    received = engine.broadcast(algorithm, state).search
    np.testing.assert_allclose(received.cov, search.cov, rtol=1e-6)
    np.testing.assert_allclose(received.root @ received.root, search.cov, rtol=1e-3, atol=1e-4)


def likes_a_label(params, model, batch, key):
    """Answers by its prompt alone: its loss is the same for any tokens of a question."""
    del model, key
    asked = batch["loss_mask"].any(1)
    loss = jnp.where(asked, (params - 2.0).sum() ** 2, 0).sum() / asked.sum()
    counts = {"queries": asked.sum(dtype=jnp.float32), "tokens_sent": jnp.float32(0)}
    return loss, {"loss": loss, "accuracy": loss * 0, **counts}


ROWS = {
    "tokens": np.arange(40, dtype=np.int32).reshape(5, 8) % 7,
    "loss_mask": np.tile(np.arange(8) >= 6, (5, 1)),
}


def test_a_prompt_that_heeds_no_question_does_not_pay():
    """Under equation 7 all such prompts are worth 1; and all that was asked is counted."""
    clients = fp.ArrayClients([ROWS] * 2, batch_size=5, local_steps=1)
    make = lambda rate: algorithms.fed_bpt(likes_a_label, **SMALL, mask_rate=rate, vocab_size=50)
    for rate, evaluations in ((0.0, 13), (0.4, 26)):
        algorithm = make(rate)
        state = engine.init(algorithm, START)
        data = jax.tree.map(jnp.asarray, clients.visit(0, data_rng(0, 0, 0)))
        ctx = core.no_context()
        update = jax.jit(algorithm.client.update, static_argnums=0)
        upload, _, metrics = update(None, engine.broadcast(algorithm, state), (), data, ctx)
        assert metrics["queries"] == 5 * evaluations
        if rate:
            assert upload.value.fitness == 1
        else:
            assert upload.value.fitness == metrics["loss"] < (START - 2.0).sum() ** 2


def test_tokens_of_questions_are_replaced_and_no_others():
    tokens = np.full((200, 20), 3, np.int32)
    batch = {"tokens": jnp.asarray(tokens), "loss_mask": jnp.arange(20)[None] >= 15}
    batch["loss_mask"] = jnp.broadcast_to(batch["loss_mask"], tokens.shape)
    found = replace_tokens(batch, jax.random.key(0), rate=0.4, vocab_size=1000)
    changed = np.asarray(found["tokens"]) != 3
    assert not changed[:, 0].any()
    assert not changed[:, 15:].any()
    np.testing.assert_allclose(changed[:, 1:15].mean(), 0.4, atol=0.03)
    assert found["tokens"].dtype == jnp.int32
    assert int(found["tokens"].max()) > 900
    np.testing.assert_array_equal(found["loss_mask"], batch["loss_mask"])


def test_without_learning_its_shape_the_search_stays_round():
    algorithm = algorithms.fed_bpt(quadratic, **SMALL, learn_cov=False)
    *_, (state, _) = fp.run(algorithm, None, quadratic_clients(1), params=START, rounds=2)
    np.testing.assert_array_equal(state.shared.search.cov, np.eye(3))
    assert np.abs(state.shared.search.mean).max() > 0


@pytest.mark.heavy
def test_averaged_distributions_are_the_mean_of_the_clients(begun):
    del begun
    algorithm = algorithms.fed_avg_bbt(quadratic, **SMALL)
    state = engine.init(algorithm, START)
    sent = jax.jit(lambda: visits(algorithm, state))()
    weights = np.arange(1.0, CLIENTS + 1)
    total = algorithm.aggregate.init(jax.tree.map(lambda x: x[0], sent), CLIENTS)
    mean = algorithm.aggregate.finish(
        algorithm.aggregate.add(total, sent, jnp.asarray(weights, jnp.float32))
    )
    search = algorithm.server.update(mean, (), state.shared)[0].search
    share = weights / weights.sum()
    np.testing.assert_allclose(search.mean, share @ np.asarray(sent.mean), rtol=1e-5)
    np.testing.assert_allclose(search.sigma, share @ np.asarray(sent.sigma), rtol=1e-5)
    lower = np.asarray(search.cov)[np.tril_indices(3)]
    np.testing.assert_allclose(lower, share @ np.asarray(sent.cov), rtol=1e-4, atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["fed_bpt", "fed_bbpt"])
def test_a_model_may_be_asked_one_point_after_another(name):
    """The host executor, which any model behind an interface needs, gives the same."""
    few = {"search_dim": 3, "num_points": 2, "generations": 1}
    own = {"num_directions": 1, "spsa_step": 0.1} if name == "fed_bbpt" else few
    algorithm = algorithms.ALGORITHMS[name](quadratic, **own)
    alone = lambda population, rng: np.arange(1)
    ends = []
    for executor in (fp.device, host):
        plan = fp.Plan(sampler=alone, executor=executor)
        run = fp.run(algorithm, None, quadratic_clients(1), params=START, rounds=1, plan=plan)
        ends.append(engine.deployed(algorithm, None, list(run)[-1][0])[1])
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)
    assert np.abs(ends[0] - START).max() > 1e-3


@pytest.mark.heavy
def test_evolution_finds_a_minimum_that_all_clients_share():
    def shared(params, model, batch, key):
        return quadratic(params, model, {**batch, "b": batch["b"] * 0 + MINIMUM[:1]}, key)

    algorithm = algorithms.fed_bpt(shared, search_dim=3, num_points=6, generations=4)
    found = solve(algorithm, rounds=25, local_steps=1, params=START)
    np.testing.assert_allclose(found, MINIMUM[0], atol=0.02)


@pytest.mark.heavy
def test_a_closed_language_model_learns_to_answer_by_its_prompt():
    """Embeddings in, scores out: two words to choose from, and one of them is always right."""
    model = tiny_model()
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 30, size=(4, 6, 7)).astype(np.int32)
    tokens[..., -1] = 3
    mask = np.tile(np.arange(7) == 6, (6, 1))
    clients = fp.ArrayClients(
        [{"tokens": t, "loss_mask": mask} for t in tokens], batch_size=6, local_steps=1
    )
    start = add_soft_prompt(model, jax.random.key(0), length=2)
    algorithm = algorithms.fed_bpt(choice_loss([3, 4]), search_dim=6, num_points=6, generations=3)
    steps = list(fp.run(algorithm, model, clients, params=start, rounds=6))
    losses = [record["loss"] for _, record in steps]
    assert losses[-1] < losses[0] - 0.02
    assert [record["queries"] for _, record in steps] == [4 * 6 * (3 * 6 + 1)] * 6
    assert [record["tokens_sent"] for _, record in steps] == [6 * 4 * 6 * 19] * 6
    same, params = fp.deployed(algorithm, model, steps[-1][0])
    assert same is model
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert shapes(params) == shapes(start) == {"prompt": {"embeddings": (2, 16)}}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_points": 1}, "num_points at least 2, got 500, 8 and 1"),
        ({"generations": 0}, "must be at least 1"),
        ({"search_sigma": 0.0}, "search_sigma must be positive, got 0.0"),
        ({"mask_rate": 1.0}, r"mask_rate must be in \[0, 1\), got 1.0"),
        ({"mask_rate": 0.4}, "mask_rate=0.4 replaces tokens by others and needs vocab_size"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    for factory in (algorithms.fed_bpt, algorithms.fed_avg_bbt):
        with pytest.raises(ValueError, match=message):
            factory(quadratic, **setting)
