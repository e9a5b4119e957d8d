"""Laws of prompts as parameters: they equal a prompt that is written into the row by hand."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post.adapters.lora import add_lora
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.algorithms import fed_avg
from fedjax_post.model.decoder import weight_shapes
from fedjax_post.model.generate import generate
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_config, tiny_model

BOS, P = 1, 3
IDS = [7, 20, 4]
SLIDING = {"sliding_window": 4, "sliding_layers": (1,)}
LEARNED = {"rope": None, "learned_positions": True, "norm": "layer"}
KINDS = {"rope": {}, "sliding": SLIDING, "learned": LEARNED, "gemma": {"embedding_scale": 4.0}}
ROWS = jnp.array([[BOS, 5, 9, 2, 30, 11], [8, 5, 9, 2, 0, 0]])  # with bos; without, padded
BY_HAND = jnp.array([[BOS, *IDS, 5, 9, 2, 30, 11], [*IDS, 8, 5, 9, 2, 0, 0]])


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(bos_id=BOS, **KINDS[request.param])


def soft(model, ids=IDS):
    return {"prompt": {"embeddings": model.embed({}, jnp.array([ids]))[0].astype(jnp.float32)}}


def both(model):
    return text_prompt(IDS), soft(model)


def test_a_prompt_is_its_tokens_written_into_the_row(model):
    expected = model.logits({}, BY_HAND)[:, P:]
    for params in both(model):
        np.testing.assert_allclose(model.logits(params, ROWS), expected, atol=1e-5)


@pytest.mark.heavy
def test_scores_and_losses_are_those_of_the_row_by_hand(model):
    mask = jnp.array([[0, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]], bool)
    by_hand = jnp.pad(mask[:, 1:], ((0, 0), (P + 1, 0)))
    scores = model.scores({}, BY_HAND)
    loss = model.total_loss({}, BY_HAND, by_hand)
    for params in both(model):
        found = model.scores(params, ROWS)
        np.testing.assert_allclose(found.log_probs, scores.log_probs[:, P:], atol=1e-5)
        np.testing.assert_array_equal(found.is_most_likely, scores.is_most_likely[:, P:])
        for ours, theirs in zip(model.total_loss(params, ROWS, mask), loss, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.heavy
def test_generation_is_that_of_the_row_by_hand(model):
    """Left-padded rows, in which bos stands at different places, or nowhere."""
    prompts = jnp.array([[0, 0, BOS, 5, 9], [BOS, 5, 9, 2, 30], [0, 8, 5, 9, 2]])
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], bool)
    by_hand = [[BOS, *IDS, 5, 9], [BOS, *IDS, 5, 9, 2, 30], [*IDS, 8, 5, 9, 2]]
    limits = {"max_new_tokens": 6, "eos_id": 99, "pad_id": 0}
    expected = [
        generate(model, {}, jnp.array([row]), jnp.ones((1, len(row)), bool), **limits)[0]
        for row in by_hand
    ]
    for params in both(model):
        found = generate(model, params, prompts, mask, **limits)
        np.testing.assert_array_equal(found, np.stack(expected))
        np.testing.assert_array_equal(model.answer(params, prompts, mask, **limits), found)


def test_no_prompt_is_a_prompt_of_nothing(model):
    for params in (text_prompt([]), {"prompt": {"embeddings": jnp.zeros((0, 16))}}, {"prompt": {}}):
        np.testing.assert_array_equal(model.logits(params, ROWS), model.logits({}, ROWS))


def test_positions_go_on_behind_the_prompt(model):
    positions = jnp.broadcast_to(jnp.arange(6)[None] + 2, (2, 6))
    found = model.logits(text_prompt(IDS), ROWS, positions=positions)
    expected = model.logits(
        {}, BY_HAND, positions=jnp.broadcast_to(jnp.arange(9)[None] + 2, (2, 9))
    )
    np.testing.assert_allclose(found, expected[:, P:], atol=1e-5)


@pytest.mark.heavy
def test_the_gradient_is_that_through_embed_logits():
    model = tiny_model(bos_id=BOS)
    params = add_soft_prompt(model, jax.random.key(3), length=P)
    mask = jnp.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]], bool)

    def by_hand(params):
        prompt = jnp.stack([params["prompt"]["embeddings"]] * 2)
        rows = model.embed({}, ROWS)
        first = jnp.concatenate([rows[:1, :1], prompt[:1], rows[:1, 1:]], axis=1)
        second = jnp.concatenate([prompt[1:], rows[1:]], axis=1)
        logits = model.embed_logits({}, jnp.concatenate([first, second]))[:, P:-1]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, ROWS[:, 1:])
        return jnp.where(mask[:, 1:], nats, 0).sum()

    ours = jax.grad(lambda p: model.total_loss(p, ROWS, mask).nats)(params)
    expected = jax.grad(by_hand)(params)
    np.testing.assert_allclose(*(g["prompt"]["embeddings"] for g in (ours, expected)), atol=1e-5)


def test_a_prompt_works_beside_an_adapter():
    model, params = add_lora(
        tiny_model(bos_id=BOS), jax.random.key(1), rank=2, alpha=4, layers=(1, 2)
    )
    params = jax.tree.map(lambda leaf: leaf + 0.2, params)
    found = model.logits({**params, **text_prompt(IDS)}, ROWS)
    np.testing.assert_allclose(found, model.logits(params, BY_HAND)[:, P:], atol=1e-5)


def test_half_precision_casts_the_prompt_at_use():
    wide = tiny_model(bos_id=BOS)
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide.variables)
    model = type(wide)(weights, tiny_config(bos_id=BOS, dtype="bfloat16"))
    found = model.logits(soft(model), ROWS)
    np.testing.assert_array_equal(found, model.logits(text_prompt(IDS), ROWS))


def packed_like(rows, *, left=0):
    """Rows one behind the other and their segments from 1 on, `left` places of padding before."""
    numbers = np.repeat(np.arange(1, len(rows) + 1), [len(row) for row in rows])
    tokens = np.concatenate([np.full(left, BOS), *rows, [0, 0]])
    segments = np.concatenate([np.zeros(left, int), numbers, [0, 0]])
    return jnp.array([tokens], jnp.int32), jnp.array([segments], jnp.int32)


def side_by_side(rows):
    """The same rows, each padded on the right."""
    width = max(map(len, rows))
    return jnp.array([row + [0] * (width - len(row)) for row in rows])


SEGMENTS = [[BOS, 5, 9, 2, 30], [8, 5, 9], [BOS, 12, 3, 7], [BOS, 6]]


def test_packed_rows_each_have_the_prompt(model):
    """Segments with and without bos, and padding on the left that looks like bos."""
    tokens, segments = packed_like(SEGMENTS, left=3)
    params = soft(model)
    found = model.logits(params, tokens, segments=segments)[0, 3:-2]
    alone = model.logits(params, side_by_side(SEGMENTS))
    expected = [alone[i, : len(row)] for i, row in enumerate(SEGMENTS)]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-5)


def test_packed_rows_of_a_tokenizer_without_bos_have_the_prompt_in_front():
    model = tiny_model()
    tokens, segments = packed_like(SEGMENTS)
    found = model.logits(text_prompt(IDS), tokens, segments=segments)[0, :-2]
    by_hand = model.logits({}, side_by_side([IDS + row for row in SEGMENTS]))
    expected = [by_hand[i, P : P + len(row)] for i, row in enumerate(SEGMENTS)]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)


@pytest.mark.heavy
def test_packed_rows_have_the_loss_and_gradient_of_rows_alone():
    model = tiny_model(bos_id=BOS)
    params = add_soft_prompt(model, jax.random.key(3), length=P)
    tokens, segments = packed_like(SEGMENTS)
    packed = {"tokens": tokens, "segments": segments, "loss_mask": tokens > 4}
    padded = side_by_side(SEGMENTS)
    apart = {"tokens": padded, "loss_mask": padded > 4}
    losses, grads = zip(
        *(
            jax.value_and_grad(lambda p, b=b: sft_loss(p, model, b, None)[0])(params)
            for b in (packed, apart)
        ),
        strict=True,
    )
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(*(g["prompt"]["embeddings"] for g in grads), atol=1e-5)


def test_segments_of_given_positions_refuse_a_prompt():
    where = {"positions": jnp.zeros((2, 6), jnp.int32), "segments": jnp.ones((2, 6), jnp.int32)}
    with pytest.raises(ValueError, match="leave out 'positions'"):
        tiny_model().logits(text_prompt(IDS), ROWS, **where)


def stacked_prompts(model, num):
    keys = jax.random.split(jax.random.key(5), num)
    return jax.vmap(partial(add_soft_prompt, model, length=20))(keys)


@pytest.mark.heavy
def test_clients_with_prompts_of_their_own_share_the_base():
    """The memory law: products with weights are one for all clients, forward and backward."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "head_dim": 32}
    model = tiny_model(bos_id=BOS, **shape)
    base = 4 * sum(map(math.prod, weight_shapes(model.config).values()))

    def compiled(num):
        rows = {
            "tokens": jnp.zeros((num, 1, 4), jnp.int32),
            "loss_mask": jnp.ones((num, 1, 4), bool),
        }
        step = lambda p, m, b: jax.grad(lambda p: sft_loss(p, m, b, None)[0])(p)
        mapped = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
        return mapped.lower(stacked_prompts(model, num), model, rows).compile()

    one, eight = compiled(1), compiled(8)
    text = eight.as_text()
    assert "f32[8,128,256]" not in text
    assert "f32[2,8,128,256]" not in text
    assert "f32[192,256]" in text  # 8 clients x 24 places, one product
    one, eight = (program.memory_analysis().temp_size_in_bytes for program in (one, eight))
    assert eight - one < 3 * base  # seven copies would be 7 * base


def test_generation_maps_over_clients_own_prompts():
    model, num = tiny_model(bos_id=BOS), 3
    stacked = stacked_prompts(model, num)
    rows = jnp.stack([ROWS] * num)
    ask = lambda p, r: model.answer(p, r, r > 0, max_new_tokens=4, eos_id=99, pad_id=0)
    found = jax.vmap(ask)(stacked, rows)
    for i in range(num):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        np.testing.assert_array_equal(found[i], ask(own, ROWS))


@pytest.mark.heavy
def test_federated_prompt_tuning_learns():
    model = tiny_model(bos_id=BOS)
    rows = {
        "tokens": np.tile(np.array([[BOS, 5, 9, 17, 3]], np.int32), (4, 1)),
        "loss_mask": np.tile(np.array([[0, 0, 0, 1, 1]], bool), (4, 1)),
    }
    clients = fp.ArrayClients([rows] * 3, batch_size=4, local_steps=4)
    params = add_soft_prompt(model, jax.random.key(0), length=4)
    algorithm = fed_avg(sft_loss, optax.adam(0.1))
    *_, (state, _) = fp.run(algorithm, model, clients, params=params, rounds=8)
    batch = jax.tree.map(jnp.asarray, rows)
    before, after = (sft_loss(p, model, batch, None)[0] for p in (params, state.shared))
    assert after < 0.2 * before


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"tokens": jnp.zeros(2, jnp.int32), "embeddings": jnp.zeros((2, 16))}, "one of"),
        ({"words": jnp.zeros(2)}, "one of"),
        ({"tokens": jnp.zeros(2)}, "int32"),
        ({"embeddings": jnp.zeros(16)}, r"float32 \[P, D\], got float32 \[16\]"),
        ({"embeddings": jnp.zeros((2, 15))}, "15 numbers and this model's 16"),
    ],
)
def test_a_malformed_prompt_is_refused(held, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().logits({"prompt": held}, ROWS)


def test_a_prompt_counts_towards_the_context():
    model = tiny_model(bos_id=BOS, max_positions=14)
    limits = {"max_new_tokens": 6, "eos_id": 99, "pad_id": 0}
    generate(model, text_prompt([4, 4]), ROWS, ROWS > 0, **limits)
    with pytest.raises(ValueError, match="prompt of 9 tokens"):
        generate(model, text_prompt(IDS), ROWS, ROWS > 0, **limits)
    model.logits(text_prompt([4] * 8), ROWS)
    with pytest.raises(ValueError, match="rows of 6 tokens and a prompt of 9 exceed .* of 14"):
        model.logits(text_prompt([4] * 9), ROWS)
