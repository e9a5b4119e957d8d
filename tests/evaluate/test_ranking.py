"""Ranks of labels against their definitions: one sequence at a time, and torch's log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.adapters.prompt import text_prompt
from fedjax_post.adapters.steered import steer
from fedjax_post.core.access import Access
from fedjax_post.disclosure.metered import real_rows
from fedjax_post.evaluate import loss
from fedjax_post.evaluate.choices import find_choices
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.loss import row_losses
from fedjax_post.evaluate.ranking import choice_log_probs, rank
from fedjax_post.evaluate.scores import left_out, measure, score
from fedjax_post.evaluate.stacked import rows_at
from fedjax_post.hub.load import load_model
from fedjax_post.testing.models import tiny_model

EOS = 1
LABELS = [[10], [11, 12], [11, 14, 15]]
PROMPTS = [[2, 3, 20, 4], [2, 21, 22, 23, 24, 4], [2, 4], [2, 3, 25, 26, 4], [2, 5, 4], [2, 27, 4]]
BASE = tiny_model(bos_id=2, sliding_window=3, sliding_layers=(1,))
_LOGITS = jax.jit(lambda model, params, tokens: model.logits(params, tokens))


def decode(ids):
    return " ".join(map(str, ids))


def heldout_of(make, **settings):
    """Six rows of three labels, each of which occurs twice; the labels are given."""
    table = make(list(zip(PROMPTS, [*LABELS, *LABELS], strict=True)), **settings)
    texts = tuple(map(decode, LABELS))
    choices = find_choices(
        (table,), eos_id=EOS, decode_fn=decode, encode_fn=lambda text: [], labels=texts
    )
    return HeldOut(table, np.arange(6), decode, EOS, exact_match=False, choices=choices)


def direct(model, params, prompt, label):
    """The log-probability of a label, from the logits of one row without cache or padding."""
    padded = np.zeros((1, 16), np.int32)
    padded[0, : len(prompt) + len(label)] = [*prompt, *label]
    log_probs = jax.nn.log_softmax(_LOGITS(model, params, padded)[0])
    return sum(float(log_probs[len(prompt) + i - 1, token]) for i, token in enumerate(label))


def table_of_log_probs(model, params, prompts):
    return np.array([[direct(model, params, p, label) for label in LABELS] for p in prompts])


def models():
    adapted, lora = add_lora(BASE, jax.random.key(0), rank=2, alpha=4.0)
    lora = jax.tree.map(lambda x: x + 0.1, lora)
    yield "base", BASE, {}
    yield "lora", adapted, lora
    yield "prompt", BASE, text_prompt([7, 8, 9])
    yield "steered", steer(BASE, tiny_model(3, num_layers=1)), {}
    yield "scores only", BASE.restrict(Access.LOGITS), {}


@pytest.mark.heavy
@pytest.mark.parametrize(("model", "params"), [pytest.param(m, p, id=n) for n, m, p in models()])
def test_log_probs_are_those_of_single_rows(make, model, params):
    choices = heldout_of(make).choices
    prompts = list(map(np.array, PROMPTS))
    expected = table_of_log_probs(model, params, PROMPTS)
    found = choice_log_probs(model, params, prompts, choices, batch_size=4).labels
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_scores_are_their_definitions(make):
    model, heldout = BASE, heldout_of(make)
    given = table_of_log_probs(model, {}, PROMPTS)
    prior = table_of_log_probs(model, {}, [[2, 4]])
    right = np.array([0, 1, 2, 0, 1, 2])
    share = lambda values: float((values.argmax(1) == right).mean())
    scores = score(model, {}, heldout)
    assert heldout.choices.null_prompt.tolist() == [2, 4]
    assert scores["accuracy"] == pytest.approx(share(given))
    assert scores["accuracy_per_token"] == pytest.approx(share(given / [1, 2, 3]))
    assert scores["accuracy_pmi"] == pytest.approx(share(given - prior))


@pytest.mark.heavy
@pytest.mark.parametrize("prefix", [(), (2,)])
@pytest.mark.parametrize(("model", "params"), [pytest.param(m, p, id=n) for n, m, p in models()])
def test_the_loss_of_a_ranked_row_is_that_of_the_row_alone(make, model, params, prefix):
    heldout = heldout_of(make)._replace(prefix=prefix, batch_size=4)
    expected = row_losses(model, params, heldout.table, rows=heldout.rows)
    np.testing.assert_allclose(rank(model, params, heldout).nats, expected.nats, atol=3e-5)


def test_a_ranked_row_is_read_once(make, monkeypatch):
    heldout = heldout_of(make, cut=[0])
    expected = row_losses(BASE, {}, heldout.table, rows=heldout.rows)
    read = []
    monkeypatch.setattr(
        loss, "rows_at", lambda rows, places: read.extend(rows[places]) or rows_at(rows, places)
    )
    found = measure(BASE, {}, heldout).losses
    assert set(read) == {0}  # cut, and so not ranked
    np.testing.assert_allclose(found.nats, expected.nats, atol=3e-5)
    np.testing.assert_array_equal(found.num_tokens, expected.num_tokens)


def test_a_chat_of_two_answers_keeps_the_loss_of_both(make):
    """Its last answer is the label; the first one counts in the loss too."""
    plain = heldout_of(make)
    table = make(
        [([2, 3, ~20, ~EOS, 4], LABELS[0]), *zip(PROMPTS[1:], [*LABELS[1:], *LABELS], strict=True)]
    )
    chat = plain._replace(table=table)
    expected = row_losses(BASE, {}, table, rows=chat.rows)
    assert np.isnan(rank(BASE, {}, chat).nats).tolist() == [True, *[False] * 5]
    found = measure(BASE, {}, chat).losses
    np.testing.assert_allclose(found.nats, expected.nats, atol=3e-5)
    assert found.num_tokens.tolist() == expected.num_tokens.tolist() == [4, 3, 4, 2, 3, 4]


def test_a_response_that_is_longer_than_the_labels_is_read_apart(make):
    """Spaces belong to no label, so that such a row is ranked too."""
    plain = heldout_of(make)
    spaced = lambda ids: decode(ids).replace("9", " ")
    table = make(
        [
            (PROMPTS[0], [*LABELS[0], 9, 9, 9]),
            *zip(PROMPTS[1:], [*LABELS[1:], *LABELS], strict=True),
        ]
    )
    heldout = plain._replace(table=table, decode_fn=spaced)
    expected = row_losses(BASE, {}, table, rows=heldout.rows)
    ranks = rank(BASE, {}, heldout)
    assert not np.isnan(ranks.shares["accuracy"]).any()
    assert np.isnan(ranks.nats).tolist() == [True, *[False] * 5]
    np.testing.assert_allclose(measure(BASE, {}, heldout).losses.nats, expected.nats, atol=3e-5)


def test_a_model_without_numbers_has_a_loss_without_one(make):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), BASE)
    losses = measure(broken, {}, heldout_of(make)).losses
    assert np.isnan(losses.nats).all()
    assert losses.num_tokens.tolist() == [2, 3, 4, 2, 3, 4]


def test_pairs_that_nothing_has_changed_are_ties(make):
    """Both sides of a margin have to be computed alike."""
    heldout = heldout_of(make)
    other = [*LABELS[1:], LABELS[0]]
    rejected = make(list(zip(PROMPTS, [*other, *other], strict=True)))
    found = measure(BASE, {}, heldout._replace(rejected=rejected))
    assert found.shares["preference"].tolist() == [0.5] * 6


@pytest.mark.heavy
def test_a_shared_prefix_changes_no_rank(make):
    choices = heldout_of(make).choices
    prompts = [np.array(prompt) for prompt in ([2, 3, 20, 4], [2, 3, 4], [2, 3, 21, 22])]
    whole = choice_log_probs(BASE, {}, prompts, choices, batch_size=4).labels
    rest = [prompt[2:] for prompt in prompts]
    shared = choice_log_probs(BASE, {}, rest, choices, batch_size=4, prefix=(2, 3)).labels
    np.testing.assert_allclose(shared, whole, atol=1e-5)
    heldout = heldout_of(make)  # its null prompt is 2 4
    for name, flags in rank(BASE, {}, heldout._replace(prefix=(2,))).shares.items():
        np.testing.assert_array_equal(flags, rank(BASE, {}, heldout).shares[name])


def test_a_model_without_numbers_ranks_no_label_first(make):
    """numpy's argmax of them is the first label."""
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), BASE)
    found = rank(broken, {}, heldout_of(make)).shares
    assert all(values.tolist() == [0.0] * 6 for values in found.values())


def test_each_row_that_is_ranked_is_noted_once(make):
    """As it would be sent to a host: with what precedes it, without its label or padding."""
    noted = []

    def note_fn(params, prompts, mask, *, prefix, answer):
        noted.append((real_rows(prompts, mask, prefix=prefix), answer))

    for heldout in (heldout_of(make), heldout_of(make)._replace(prefix=(2,))):
        rank(BASE, {}, heldout, note_fn=note_fn)
        assert noted.pop() == (PROMPTS, 3)
    assert not noted


def test_rows_without_a_label_are_left_out_and_counted(make):
    whole, cut = heldout_of(make), heldout_of(make, cut=[0, 5])
    found, left = rank(BASE, {}, whole).shares, rank(BASE, {}, cut).shares
    for name, flags in left.items():
        assert np.isnan(flags).tolist() == [True, False, False, False, False, True]
        np.testing.assert_array_equal(flags[1:5], found[name][1:5])
    assert (left_out(whole), left_out(cut)) == ({}, {"accuracy": 2})
    scores = score(BASE, {}, cut)
    assert scores["accuracy"] == pytest.approx(np.nanmean(left["accuracy"]))


def test_rows_that_leave_no_room_for_a_label_are_left_out(make):
    heldout = heldout_of(make)._replace(room=8)  # 6 + 3 tokens do not fit
    assert np.isnan(rank(BASE, {}, heldout).shares["accuracy"]).tolist() == [
        False, True, False, False, False, False,
    ]  # fmt: skip


def test_a_model_without_scores_is_not_ranked(make):
    heldout = heldout_of(make)._replace(loss=False, ranked=False)
    assert score(None, {}, heldout) == {}


def test_shares_of_a_task_without_counted_rows_are_left_out(make):
    tasks = ["a", "b", "a", "b", "a", "b"]
    heldout = heldout_of(make, labels=tasks, cut=[0, 2, 4])
    found = score(BASE, {}, heldout)["per_task"]
    assert list(found["a"]) == ["loss"]
    assert "accuracy" in found["b"]


@pytest.mark.oracle
def test_log_probs_are_those_of_transformers(make, tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5)
    )
    theirs.save_pretrained(tmp_path)
    expected = np.zeros((len(PROMPTS), len(LABELS)))
    for i, prompt in enumerate(PROMPTS):
        for j, label in enumerate(LABELS):
            with torch.no_grad():
                logits = theirs(torch.tensor([[*prompt, *label]])).logits[0]
            log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            expected[i, j] = log_probs[torch.arange(len(label)), torch.tensor(label)].sum()
    prompts, choices = list(map(np.array, PROMPTS)), heldout_of(make).choices
    found = choice_log_probs(load_model(tmp_path), {}, prompts, choices).labels
    np.testing.assert_allclose(found, expected, atol=1e-4)
