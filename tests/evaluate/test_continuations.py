"""Continuations have the probabilities that the logits give, whatever batch they are in."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post import study
from fedjax_post.adapters.lora import add_lora
from fedjax_post.adapters.prompt import add_soft_prompt
from fedjax_post.adapters.steered import steer
from fedjax_post.evaluate import continuations
from fedjax_post.evaluate.continuations import (
    Continuation,
    continue_greedily,
    score_continuations,
)
from fedjax_post.evaluate.harness import Harness, check_greedy
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.model.generate import generate
from fedjax_post.testing.models import tiny_model


def plain():
    return tiny_model(), {}


def adapted():
    model, params = add_lora(tiny_model(), jax.random.key(1), rank=2, alpha=4)
    return model, jax.tree.map(lambda leaf: leaf + 0.1, params)


def prompted():
    return tiny_model(), add_soft_prompt(tiny_model(), jax.random.key(1), length=3)


def steered():
    return steer(tiny_model(), tiny_model(2)), {}


def placed():
    """Positions are learned: there are none after the last."""
    return tiny_model(learned_positions=True, rope=None), {}


MADE = pytest.mark.parametrize("made", [plain, adapted, prompted, steered, placed])


def asked_of(room, number=7):
    """Continuations of many lengths, some of them as long as the model reads."""
    draw = np.random.default_rng(0)
    for i in range(number):
        total = room + 1 if i % 4 == 0 else int(draw.integers(2, room + 1))
        cut = int(draw.integers(1, total))
        tokens = draw.integers(1, 20, total).tolist()
        yield Continuation(tokens[:cut], tokens[cut:])


@pytest.mark.heavy
@MADE
def test_log_probabilities_are_those_of_the_logits(made):
    model, params = made()
    room = model.config.max_positions - model.prompt_length(params)
    asked = list(asked_of(room))
    rows = np.zeros((len(asked), room), np.int32)
    for row, (context, tokens) in zip(rows, asked, strict=True):
        row[: len(context) + len(tokens) - 1] = [*context, *tokens][:-1]
    log_probs = np.asarray(jax.nn.log_softmax(model.logits(params, jnp.asarray(rows))))
    found = score_continuations(model, params, asked)
    for own, (context, tokens), scored in zip(log_probs, asked, found, strict=True):
        own = own[len(context) - 1 :][: len(tokens)]
        wanted = own[np.arange(len(tokens)), tokens].sum()
        assert scored.log_prob == pytest.approx(float(wanted), abs=1e-4)
        assert scored.is_greedy == (own.argmax(-1) == tokens).all()


def test_a_greedy_continuation_is_found_to_be_one():
    model = tiny_model()
    prompt = [3, 4, 5]
    (best,) = continue_greedily(model, {}, [prompt], max_new_tokens=3, is_done=len, pad_id=0)
    other = [*best[:2], (best[2] + 1) % 20]
    asked = [Continuation(prompt, best), Continuation(prompt, other)]
    assert [found.is_greedy for found in score_continuations(model, {}, asked)] == [True, False]


def test_batches_do_not_matter(monkeypatch):
    model = tiny_model()
    asked = list(asked_of(model.config.max_positions))
    whole = score_continuations(model, {}, asked)
    monkeypatch.setattr(continuations, "BATCH", 1)
    alone = score_continuations(model, {}, asked)
    np.testing.assert_allclose([a.log_prob for a in alone], [w.log_prob for w in whole], atol=1e-4)


@pytest.mark.heavy
@MADE
def test_greedy_tokens_are_those_of_generate(made, monkeypatch):
    model, params = made()
    monkeypatch.setattr(continuations, "PIECE", 3)
    room = model.config.max_positions - model.prompt_length(params) - 4
    prompts = [[2 + i % 20 for i in range(n)] for n in (1, room, 5)]
    found = continue_greedily(
        model, params, prompts, max_new_tokens=4, is_done=lambda row: False, pad_id=0
    )
    rows = np.zeros((3, room), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[room - len(prompt) :] = prompt
    rows = jnp.asarray(rows)
    limits = {"max_new_tokens": 4, "eos_id": (), "pad_id": 0}
    assert found == generate(model, params, rows, rows > 0, **limits).tolist()


def test_generation_ends_when_all_rows_are_done():
    model, seen = tiny_model(), []
    prompts = [[3, 4], [5]]
    continue_greedily(
        model,
        {},
        prompts,
        max_new_tokens=20,
        is_done=lambda row: seen.append(len(row)) is None,
        pad_id=0,
    )
    assert seen == [continuations.PIECE] * 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.8}, "temperature: 0.8"),
        ({"do_sample": True}, "do_sample: True"),
        ({"num_beams": 4}, "num_beams: 4"),
        ({"do_sample": False, "temperature": 0.8, "until": ["\n"], "max_gen_toks": 3}, None),
        ({"temperature": 0.0, "top_p": 0.9}, None),
    ],
)
def test_only_greedy_answers_are_given(settings, said):
    if said is None:
        check_greedy(settings)
    else:
        with pytest.raises(ValueError, match=f"{said}, and only greedy ones"):
            check_greedy(settings)


def test_an_answer_needs_room():
    harness = Harness(tiny_model(), {}, load_tokenizer("builtin"))
    with pytest.raises(ValueError, match="give the task a lower max_gen_toks"):
        harness._encode_prompt("say", harness.max_length)


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax_post\[eval\]'"):
        study.evaluate_tasks("builtin", ["arc_easy"])
