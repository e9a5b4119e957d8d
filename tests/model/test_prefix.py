"""A prefix that rows share is read once: the result is that of rows which each contain it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.adapters.steered import steer
from fedjax_post.core.access import Access
from fedjax_post.model.generate import Sampling, generate, sample
from fedjax_post.testing.models import tiny_model

BOS, EOS, PAD = 1, 2, 0
PREFIX = np.array([BOS, 9, 8, 7, 6], np.int32)
ROWS = [[5], [11, 12, 13], [14, 15]]
KINDS = {
    "rope": {},
    "sliding": {"sliding_window": 3, "sliding_layers": (1,)},
    "learned": {"rope": None, "learned_positions": True, "norm": "layer"},
    "capped": {"attention_softcap": 5.0, "num_kv_heads": 4},
}


def left_padded(rows, width):
    tokens, mask = np.zeros((2, len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return jnp.asarray(tokens), jnp.asarray(mask, bool)


REST = left_padded(ROWS, 4)
WHOLE = left_padded([[*PREFIX, *row] for row in ROWS], 9)


def cases():
    for name, changes in KINDS.items():
        yield name, tiny_model(bos_id=BOS, **changes), {}
    model = tiny_model(bos_id=BOS)
    yield "tokens", model, text_prompt([20, 21])
    yield "soft prompt", model, add_soft_prompt(model, jax.random.key(0), length=3)
    no_bos = tiny_model(bos_id=None)
    yield "soft prompt in front", no_bos, add_soft_prompt(no_bos, jax.random.key(0), length=3)
    adapted, lora = add_lora(model, jax.random.key(0), rank=2, alpha=4.0)
    yield "lora", adapted, jax.tree.map(lambda x: x + 0.1, lora)
    ranged, lora = add_lora(model, jax.random.key(0), rank=2, alpha=4.0, layers=(1, 2))
    yield "lora on some layers", ranged, jax.tree.map(lambda x: x + 0.1, lora)
    yield "sealed", model.restrict(Access.LOGITS), {}
    yield "steered", steer(model, tiny_model(3, num_layers=1, bos_id=BOS)), {}


@pytest.mark.parametrize(("model", "params"), [pytest.param(m, p, id=n) for n, m, p in cases()])
def test_a_shared_prefix_changes_no_score(model, params):
    score = jax.jit(lambda asked, **how: model.next_scores(params, *asked, jnp.arange(32), **how))
    np.testing.assert_allclose(score(REST, prefix=PREFIX), score(WHOLE), atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["sliding", "learned"])
def test_a_shared_prefix_changes_no_answer(kind):
    model, limits = tiny_model(bos_id=BOS, **KINDS[kind]), {"max_new_tokens": 5, "pad_id": PAD}
    for params in ({}, add_soft_prompt(model, jax.random.key(0), length=3)):
        found = model.answer(params, *REST, prefix=PREFIX, eos_id=EOS, **limits)
        whole = model.answer(params, *WHOLE, eos_id=EOS, **limits)
        np.testing.assert_array_equal(found, whole)


def test_draws_are_those_without_a_prefix():
    rule, model = Sampling(4, EOS, PAD), tiny_model(bos_id=BOS)
    drawn = [
        sample(model, {}, *asked, rule=rule, key=jax.random.key(0), prefix=prefix)
        for asked, prefix in ((REST, PREFIX), (WHOLE, None))
    ]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.heavy
def test_each_of_several_soft_prompts_has_its_own_prefix():
    model = tiny_model(bos_id=BOS)
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.vmap(lambda key: add_soft_prompt(model, key, length=3))(keys)
    one = lambda params, asked, **how: model.next_scores(params, *asked, jnp.arange(32), **how)
    mapped = jax.vmap(lambda params: one(params, REST, prefix=PREFIX))(params)
    for i in range(3):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        np.testing.assert_allclose(mapped[i], one(own, WHOLE), atol=1e-5)


def test_no_tokens_are_no_prefix():
    model, params = tiny_model(bos_id=BOS), text_prompt([20, 21])
    found = model.next_scores(params, *WHOLE, jnp.arange(4), prefix=PREFIX[:0])
    np.testing.assert_array_equal(found, model.next_scores(params, *WHOLE, jnp.arange(4)))


def test_a_prefix_counts_towards_the_context():
    model = tiny_model(bos_id=BOS, max_positions=12)
    limits = {"max_new_tokens": 4, "eos_id": EOS, "pad_id": PAD}
    with pytest.raises(ValueError, match="a prompt of 9 tokens"):
        generate(model, {}, *REST, prefix=PREFIX, **limits)


def test_the_prefix_is_computed_for_one_row():
    """The largest product of the prefix has F rows, whatever the batch."""
    model = tiny_model(bos_id=BOS)
    flops = lambda asked, **how: (
        jax.jit(lambda: model.next_scores({}, *asked, jnp.arange(2), **how))
        .lower().compile().cost_analysis()["flops"]
    )  # fmt: skip
    many = tuple(jnp.tile(x, (16, 1)) for x in REST)
    long = tuple(jnp.tile(x, (16, 1)) for x in WHOLE)
    assert flops(many, prefix=PREFIX) < 0.6 * flops(long)
