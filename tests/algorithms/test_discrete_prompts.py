"""Prompts learned from losses alone, against runs written out and against exhaustive search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.blackbox import discrete, shots
from fedjax_post.core import engine
from fedjax_post.core.algorithm import no_context
from fedjax_post.simulate.host import host
from fedjax_post.simulate.programs import device
from fedjax_post.testing import toy_prompt as toy
from fedjax_post.testing.contract import Case

WORDS = np.arange(toy.VOCAB, dtype=np.int32)
START = toy.toy_params()["prompt"]["tokens"]
IN_CONTEXT = {"separator": jnp.int32(toy.BREAK), "dropped": jnp.array([toy.BOS, toy.EOS])}


def visit(algorithm, client_id=0, shared=None):
    """One client's upload, state and metrics in its first round."""
    data = toy.toy_clients().visit(client_id, np.random.default_rng(0))
    replica = algorithm.init(toy.toy_params()) if shared is None else shared
    model, ctx = toy.toy_model(), no_context()
    state = algorithm.client.init(model, replica, ctx.key)
    return algorithm.client.update(model, replica, state, data, ctx), data


def pooled(data):
    return jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[2:]), data.batches)


def loss_of(tokens, rows):
    params = discrete.with_tokens(jnp.asarray(tokens, jnp.int32))
    return float(toy.toy_loss(params, toy.toy_model(), rows, None)[0])


def test_one_client_is_plain_bdpl():
    """The same draws, and numpy for all else: gradient, clipping, SGD and projection."""
    rate, num_samples = 0.02, 4
    algorithm = algorithms.bdpl(
        toy.toy_loss,
        optax.sgd(rate),
        candidates=WORDS,
        num_samples=num_samples,
        first_share=0,
        max_norm=2.0,
    )
    (upload, _, metrics), data = visit(algorithm)
    choices = np.concatenate([np.asarray(START)[:, None], np.tile(WORDS, (toy.LENGTH, 1))], axis=1)
    probs = np.full(choices.shape, 1 / choices.shape[1])
    for step in range(3):
        draw_key, _ = jax.random.split(jax.random.fold_in(no_context().key, step))
        logits, shape = jnp.log(jnp.asarray(probs, jnp.float32)), (num_samples, toy.LENGTH)
        chosen = np.asarray(jax.random.categorical(draw_key, logits, axis=-1, shape=shape))
        rows = jax.tree.map(lambda x, step=step: x[step], data.batches)
        losses = np.array([loss_of(choices[np.arange(3), one], rows) for one in chosen])
        gradient = np.zeros_like(probs)
        for one, loss in zip(chosen, losses, strict=True):
            for place, j in enumerate(one):
                gradient[place, j] += (loss - losses.mean()) / (num_samples - 1) / probs[place, j]
        gradient *= min(1, 2.0 / np.linalg.norm(gradient))
        probs = np.stack([closest(row) for row in probs - rate * gradient])
    np.testing.assert_allclose(upload.value, probs - 1 / choices.shape[1], atol=2e-6)
    assert metrics["queries"] == 3 * num_samples * 4


def closest(row):
    """The distribution closest to a row, by bisection of what is taken off."""
    low, high = row.min() - 1, row.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(row - low, 0)


def test_probabilities_gather_at_a_good_prompt():
    """The distribution of each place is all but one word in the end."""
    make = algorithms.bdpl(toy.toy_loss, optax.adam(0.1), candidates=WORDS, first_share=0)
    state, _ = Case(make, world=toy).run(25, chunk_size=6, executor=device)
    probs = np.asarray(state.shared.probs)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert (probs.max(axis=1) > 0.8).all()


@pytest.mark.heavy
@pytest.mark.parametrize("factory", [algorithms.fed_prompt_search, algorithms.fed_dtpt])
def test_all_edits_find_the_best_one(factory):
    """One place, one client, every word tried: the word that looking at all would find."""
    algorithm = factory(toy.toy_loss, candidates=WORDS, num_edits=toy.VOCAB)
    params = {"prompt": {"tokens": jnp.array([3], jnp.int32)}}
    shared = algorithm.init(params)
    (upload, _, metrics), data = visit(algorithm, shared=shared)
    each = [loss_of([word], pooled(data)) for word in WORDS]
    values = jax.tree.map(lambda x: x[None], upload.value)
    total = algorithm.aggregate.init(upload.value, 1)
    total = algorithm.aggregate.add(total, values, upload.weight[None])
    shared, _ = algorithm.server.update(algorithm.aggregate.finish(total), (), shared)
    _, found = algorithm.deploy(None, shared)
    assert found["prompt"]["tokens"].tolist() == [int(np.argmin(each))]
    assert metrics["queries"] == (toy.VOCAB + 1) * 12


def test_a_round_of_all_edits_is_the_best_for_everybody_together():
    """Full batches, equal weights: the next prompt is the best single edit of the mean loss."""
    num = toy.LENGTH * toy.VOCAB
    algorithm = algorithms.fed_prompt_search(
        toy.toy_loss, candidates=WORDS, num_edits=num, weigh_fn=fp.core.uniformly
    )
    arrays = [jax.tree.map(lambda x: x[:4], each) for each in toy.toy_arrays(3)]
    clients = fp.ArrayClients(arrays, batch_size=4, local_steps=1)
    state, _ = Case(algorithm, world=toy).run(1, clients=clients, executor=device, chunk_size=3)
    edits = [(p, w) for p, w in itertools.product(range(toy.LENGTH), WORDS)]
    prompts = [START.at[p].set(w) for p, w in edits]
    means = [np.mean([loss_of(t, a) for a in arrays]) for t in prompts]
    assert state.shared.tokens.tolist() == prompts[int(np.argmin(means))].tolist()
    assert state.shared.served == 1


def reached(algorithm, rounds=15):
    case = Case(algorithm, world=toy)
    state, records = case.run(rounds, chunk_size=6, executor=device)
    _, params = engine.deployed(algorithm, toy.toy_model(), state)
    return toy.toy_mean_loss(params, toy.toy_model()), records


@pytest.fixture(scope="module")
def by_vote():
    return reached(algorithms.fed_dtpt(toy.toy_loss, candidates=WORDS, num_edits=4))[0]


@pytest.mark.heavy
def test_meaning_does_not_lose_against_the_vote(by_vote):
    table = toy.toy_model().embeddings
    by_meaning, _ = reached(
        algorithms.fed_dtpt(toy.toy_loss, candidates=WORDS, embeddings=table, num_edits=4)
    )
    assert by_meaning <= by_vote < toy.toy_mean_loss(toy.toy_params(), toy.toy_model())


def test_edits_of_one_s_own_find_no_majority(by_vote):
    """Why the clients of a round try the same edits."""
    own, _ = reached(algorithms.fed_dtpt(toy.toy_loss, candidates=WORDS, num_edits=4, common=False))
    assert by_vote < own <= toy.toy_mean_loss(toy.toy_params(), toy.toy_model())


def test_what_left_is_counted_over_clients_and_edits():
    algorithm = algorithms.fed_dtpt(toy.toy_loss, candidates=WORDS, num_edits=3)
    _, records = reached(algorithm, rounds=1)
    rows = 6 * 3 * 4  # clients, steps, batch
    assert records[0]["queries"] == rows * 4
    assert records[0]["tokens_sent"] == rows * 4 * 3


@pytest.fixture(scope="module")
def kept():
    algorithm = algorithms.in_context(
        toy.toy_loss, **IN_CONTEXT, num_shots=2, num_sets=3, shots_length=9
    )
    (upload, state, metrics), data = visit(algorithm)
    return algorithm, upload, state, metrics, pooled(data)


@pytest.mark.heavy
def test_the_examples_that_help_most_are_kept(kept):
    """The kept set's loss, asked again about the rows that it does not show."""
    algorithm, _, state, metrics, rows = kept
    _, params = algorithm.deploy(None, toy.toy_params(), state)
    tokens = params["prompt"]["tokens"]
    assert tokens[: toy.LENGTH].tolist() == START.tolist()
    seen = np.asarray(shots.is_shown(rows, tokens, **IN_CONTEXT))
    assert 0 < seen.sum() < len(seen)
    others = rows | {"loss_mask": rows["loss_mask"] & ~seen[:, None]}
    np.testing.assert_allclose(metrics["loss"], loss_of(tokens, others), rtol=1e-5)


def test_examples_are_sent_with_every_question(kept):
    """Three sets of two examples, each of two words and a label; 3 tokens of a question."""
    algorithm, upload, state, metrics, rows = kept
    assert upload.value == ()
    seen = algorithm.deploy(None, toy.toy_params(), state)[1]["prompt"]["tokens"]
    queries = float(metrics["queries"])
    assert 3 * (len(rows["scale"]) - 12) <= queries < 3 * len(rows["scale"])
    assert metrics["labels_sent"] == 2 * queries
    assert metrics["tokens_sent"] == (3 + 2 * 3) * queries
    assert metrics["places_sent"] == (len(seen) - 2 * 3) * queries


def test_without_a_client_s_own_it_is_the_manual_prompt(kept):
    algorithm = kept[0]
    _, params = algorithm.deploy(None, toy.toy_params())
    assert params["prompt"]["tokens"].tolist() == START.tolist()


def test_a_manual_prompt_stays_and_asks_nothing():
    algorithm = algorithms.manual_prompt(toy.toy_loss)
    _, records = reached(algorithm, rounds=2)
    (upload, _, metrics), _ = visit(algorithm)
    assert metrics == {}
    assert upload.value == ()
    assert records[-1]["cohort"] == 6


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name",
    [
        "fed_prompt_search",
        pytest.param("fed_dtpt", marks=pytest.mark.slow),
        pytest.param("bdpl", marks=pytest.mark.slow),
    ],
)
def test_without_compilation_it_is_the_same(name):
    """Loops become plain ones, whose losses a model elsewhere could answer."""
    options = {
        "bdpl": {"client_tx": optax.sgd(0.05), "num_samples": 2},
        "fed_dtpt": {"num_edits": 2},
        "fed_prompt_search": {"num_edits": 2},
    }[name]
    algorithm = getattr(algorithms, name)(toy.toy_loss, candidates=WORDS, **options)
    clients = toy.toy_clients(1, batch_size=2, local_steps=1)
    run = lambda executor: Case(algorithm, world=toy).run(
        1, clients=clients, chunk_size=1, executor=executor
    )[0]
    compiled, plain = run(device), run(host)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), compiled, plain)
