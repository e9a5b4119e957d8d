"""Laws of direct preference optimisation: its loss, its pairs, and its federations."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.adapters.factors import with_residual
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms.references import central
from fedjax_post.data.batches import TokenClients, pool
from fedjax_post.data.pairs import PairClients
from fedjax_post.data.partition import Partition
from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.preferences import reward_margins
from fedjax_post.objectives.dpo import dpo_loss, response_log_probs
from fedjax_post.objectives.tokens import reference_of
from fedjax_post.testing.models import tiny_model

LENGTH, PROMPT = 6, 3


def table_of(seed, *, num_rows=12):
    """Rows of 3 tokens of prompt and 1 to 3 of response; prompts do not depend on the seed."""
    prompts = np.random.default_rng(99).integers(3, 32, (num_rows, PROMPT))
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, LENGTH - PROMPT + 1, num_rows)
    rows = [[*p, *~rng.integers(3, 32, n)] for p, n in zip(prompts, sizes, strict=True)]
    lengths = np.array([len(row) for row in rows], np.int32)
    return TokenTable(
        values=(np.concatenate(rows).astype(np.int32),),
        chunk=np.zeros(num_rows, np.int32),
        start=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64),
        length=lengths,
        prompt_length=np.full(num_rows, PROMPT, np.int32),
        max_length=LENGTH,
        pad_id=0,
    )


def make_clients(**schedule):
    partition = Partition(np.array([0, 4, 9, 12]), np.arange(12))
    schedule = {"batch_size": 2, "local_steps": 1} | schedule
    return PairClients(TokenClients(table_of(0), partition, **schedule), table_of(1))


def batch_of(client_id=1):
    data = make_clients().visit(client_id, np.random.default_rng(0))
    return jax.tree.map(lambda x: jnp.asarray(x[0]), data.batches)


@pytest.fixture(scope="module")
def adapted():
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4)
    moved = jax.tree.map(lambda x: x + 0.1, params)
    return model, params, moved


class Given:
    """A policy whose log-probabilities are the parameters, and a reference with its own."""

    variables: dict = {}  # noqa: RUF012
    reference = None

    def scores(self, params, tokens, key=None):
        found = self.reference if isinstance(params, dict) else params
        return type("Scores", (), {"log_probs": found})


@pytest.mark.heavy
def test_loss_and_margins_are_the_golden_ones(test_data, monkeypatch):
    """Of a policy and a reference that are two models, in float64 by PyTorch's transformers."""
    from fedjax_post.hub.load import load_model

    golden = np.load(test_data / "golden" / "dpo_stories.npz")
    found = {}
    for side, folder in (("policy", "llama2xs-280K"), ("ref", "stories260K")):
        model = load_model(test_data / "models" / folder)
        for kind in ("chosen", "rejected"):
            rows = [golden[f"{kind}_ids_{i}"] for i in range(8)]
            tokens = np.zeros((8, max(map(len, rows))), np.int32)
            mask = np.zeros(tokens.shape, bool)
            for i, row in enumerate(rows):
                tokens[i, : len(row)] = row
                mask[i, int(golden[f"prompt_len_{i}"]) : len(row)] = True
            sums = response_log_probs(model, {}, jnp.asarray(tokens), jnp.asarray(mask))
            found[f"{side}_{kind}"] = np.asarray(sums)
            np.testing.assert_allclose(sums, golden[f"{side}_{kind}"], rtol=1e-4, atol=1e-3)
    policy, reference = (
        jnp.stack([found[f"{side}_chosen"], found[f"{side}_rejected"]], 1).reshape(-1, 1)
        for side in ("policy", "ref")
    )
    model = Given()
    model.reference = reference
    monkeypatch.setattr("fedjax_post.objectives.dpo.reference_of", lambda model: model)
    batch = {"tokens": jnp.zeros((8, 2, 2), int), "loss_mask": jnp.ones((8, 2, 2), bool)}
    loss, told = dpo_loss(beta=float(golden["beta"]))(policy, model, batch, None)
    np.testing.assert_allclose(loss, golden["loss"].mean(), rtol=1e-3)
    np.testing.assert_allclose(told["margin"], golden["margin"].mean(), atol=1e-3)
    np.testing.assert_allclose(told["accuracy"], (golden["margin"] > 0).mean())


@pytest.mark.heavy
def test_it_starts_at_log_two_and_goes_the_way_of_the_preferred(adapted):
    """The gradient of a pair is -beta/2 that of the margin of its log-probabilities."""
    model, params, _ = adapted
    batch, beta = batch_of(), 0.3
    loss_fn = dpo_loss(beta=beta)
    (loss, told), grad = jax.value_and_grad(loss_fn, has_aux=True)(params, model, batch, None)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    assert (told["accuracy"], told["margin"]) == (0, 0)

    def margin(params):
        rows = batch["tokens"].reshape(-1, LENGTH), batch["loss_mask"].reshape(-1, LENGTH)
        sums = response_log_probs(model, params, *rows).reshape(-1, 2)
        return (sums[:, 0] - sums[:, 1]).mean()

    expected = optax.tree.scale(-beta / 2, jax.grad(margin)(params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), grad, expected)
    assert optax.tree.norm(grad) > 1e-3


@pytest.mark.heavy
def test_swapping_the_responses_flips_the_margin(adapted):
    model, _, moved = adapted
    batch = batch_of()
    swapped = jax.tree.map(lambda x: x[:, ::-1], batch)
    one, other = (dpo_loss()(moved, model, b, None)[1]["margin"] for b in (batch, swapped))
    np.testing.assert_allclose(one, -other, rtol=1e-4)
    assert abs(one) > 1e-3


@pytest.mark.heavy
def test_padding_pairs_change_nothing(adapted):
    model, _, moved = adapted
    batch = batch_of()
    blank = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), batch)
    one, other = (dpo_loss()(moved, model, b, None) for b in (batch, blank))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), one, other)


def test_the_reference_is_the_model_as_it_was_loaded(adapted):
    """Also where a federation has folded what it learned into the base."""
    model, params, moved = adapted
    batch = batch_of()
    change = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), moved["lora"])
    product = jax.tree.map(
        lambda pair: pair["a"] @ pair["b"],
        change,
        is_leaf=lambda x: isinstance(x, dict) and set(x) == {"a", "b"},
    )
    folded = with_residual(model, product)
    assert set(folded.variables) > set(model.variables)
    assert set(reference_of(folded).variables) == set(model.variables)
    told = dpo_loss()(params, folded, batch, None)[1]
    assert abs(told["margin"]) > 1e-4  # the folded part counts as learned


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_a_beta_that_pulls_nowhere_is_refused(beta):
    with pytest.raises(ValueError, match="beta=.* must be positive"):
        dpo_loss(beta=beta)


def test_pairs_answer_one_question_and_are_visited_like_rows():
    clients, rng = make_clients(local_steps=3), np.random.default_rng
    data = clients.visit(1, rng(5))
    tokens = data.batches["tokens"]
    assert tokens.shape == (3, 2, 2, LENGTH)
    np.testing.assert_array_equal(tokens[..., 0, :PROMPT], tokens[..., 1, :PROMPT])
    single = clients.preferred.visit(1, rng(5))
    np.testing.assert_array_equal(tokens[:, :, 0], single.batches["tokens"])
    assert data.num_tokens == 6  # pairs
    assert data.num_examples == single.num_examples == 5
    assert clients.num_steps(1) == 3


def test_short_clients_have_padding_steps():
    data = make_clients(local_steps=None, local_epochs=1).visit(2, np.random.default_rng(0))
    np.testing.assert_array_equal(data.step_mask, [True, True, False])
    assert data.num_tokens == 3


def test_tables_of_unlike_shapes_are_no_pairs():
    with pytest.raises(ValueError, match="two tables of the same shape"):
        dataclasses.replace(make_clients(), rejected=table_of(1, num_rows=11))


@pytest.mark.heavy
def test_one_step_of_all_clients_is_a_central_step(adapted):
    """Weights are pairs, and the loss is a mean over pairs."""
    model, params, _ = adapted
    clients, tx = make_clients(), optax.sgd(0.1)
    found = list(
        fp.run(algorithms.fed_avg(dpo_loss(), tx), model, clients, params=params, rounds=1)
    )[-1][0]
    visits = [clients.visit(i, fp.simulate.cohort.data_rng(0, 0, i)) for i in range(3)]
    loss_fn = lambda p: dpo_loss()(p, model, pooled, None)[0]
    pooled = jax.tree.map(lambda x: jnp.asarray(x[0]), pool(visits).batches)
    expected = optax.apply_updates(params, optax.tree.scale(-0.1, jax.grad(loss_fn)(params)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found.shared, expected)


MAKE = {
    "scaffold": lambda loss: algorithms.scaffold(loss, 0.1, participation=1.0),
    "ffa_lora": lambda loss: algorithms.ffa_lora(loss, optax.adam(0.02)),
    "flora": lambda loss: algorithms.flora(loss, optax.adam(0.02)),
    "ditto": lambda loss: algorithms.ditto_fed_avg(loss, optax.adam(0.02)),
    "fed_mezo": lambda loss: algorithms.fed_mezo(loss, optax.sgd(1e-3)),
    "central": lambda loss: central(loss, optax.adam(0.02)),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", MAKE)
def test_it_goes_with_algorithms_of_every_kind(adapted, name):
    model, params, _ = adapted
    plan = fp.Plan(feed=fp.pooled if name == "central" else fp.chunks)
    algorithm = MAKE[name](dpo_loss(beta=0.5))
    records = [
        record
        for _, record in fp.run(
            algorithm, model, make_clients(), params=params, rounds=6, plan=plan
        )
    ]
    assert all(record["dropped"] == [] for record in records)
    if name not in ("fed_mezo", "scaffold"):
        assert records[-1]["loss"] < math.log(2) - 0.01


def test_held_out_pairs_are_preferred_by_what_was_learned(adapted):
    model, params, moved = adapted
    tables, rows = (table_of(0), table_of(1)), np.arange(12)
    at_start = reward_margins(model, params, tables, rows=rows, batch_size=5)
    np.testing.assert_array_equal(at_start, 0)
    found = reward_margins(model, moved, tables, rows=rows, batch_size=5)
    flipped = reward_margins(model, moved, tables[::-1], rows=rows, batch_size=5)
    np.testing.assert_allclose(found, -flipped, atol=1e-5)
    batch = jax.tree.map(
        lambda x: jnp.asarray(x.reshape(-1, 2, LENGTH)),
        make_clients(batch_size=4).visit(0, np.random.default_rng(0)).batches,
    )
    order = np.random.default_rng(0).permutation(4)
    told = dpo_loss(beta=1.0)(moved, model, batch, None)[1]
    np.testing.assert_allclose(told["margin"], found[order].mean(), rtol=1e-3)
