"""Laws of gradient accumulation: parts of a batch give what the whole batch gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.objectives.dpo import dpo_loss, num_pairs
from fedjax_post.objectives.grpo import grpo_loss, num_answers
from fedjax_post.objectives.microbatch import in_parts
from fedjax_post.objectives.sft import num_tokens, sft_loss
from fedjax_post.testing.models import tiny_model

TOKENS = jax.random.randint(jax.random.key(1), (4, 8), 3, 32)
# 6, 1, 0 and 4 response tokens: a mean over parts would not be the mean over tokens
MASK = jnp.arange(8)[None] >= jnp.array([[2], [7], [8], [4]])
BATCH = {"tokens": TOKENS, "loss_mask": MASK}
PACKED = BATCH | {"segments": jnp.broadcast_to(jnp.repeat(jnp.array([1, 2]), 4), TOKENS.shape)}
TWICE = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[::-1] + 0]), BATCH)
PAIRS = jax.tree.map(lambda leaf: leaf.reshape(4, 2, 8), TWICE)  # two of them padding
ANSWERS = BATCH | {
    "advantages": jnp.array([1.0, -1.0, 0.5, -0.5]),
    "old_log_probs": jnp.full((4, 7), -2.5),
}
LOSSES = {
    "sft": (sft_loss, num_tokens, BATCH),
    "sft, packed": (sft_loss, num_tokens, PACKED),
    "dpo": (dpo_loss(beta=0.5), num_pairs, PAIRS),
    "grpo": (grpo_loss(clip=0.2, beta=0.1), num_answers, ANSWERS),
}


@pytest.fixture(scope="module")
def adapted():
    """A model and a start of its adapter away from zero, where B alone would hide A."""
    model, params = add_lora(tiny_model(num_layers=1), jax.random.key(0), rank=2, alpha=4)
    return model, jax.tree.map(lambda leaf: leaf + 0.1, params)


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), found, expected
    )


@pytest.mark.heavy
@pytest.mark.parametrize("num_parts", [2, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_parts_give_the_loss_metrics_and_gradient_of_the_whole(adapted, name, num_parts):
    (loss_fn, count_fn, batch), (model, params) = LOSSES[name], adapted
    parts_fn = in_parts(loss_fn, count_fn, num_parts=num_parts)
    found, expected = (
        jax.jit(jax.value_and_grad(fn, has_aux=True))(params, model, batch, None)
        for fn in (parts_fn, loss_fn)
    )
    assert optax.tree.norm(expected[1]) > 0.01
    assert_close(found, expected)
    assert_close(parts_fn(params, model, batch, None), expected[0])


@pytest.mark.heavy
def test_a_count_is_what_the_loss_is_a_mean_over(adapted):
    """Doubling a batch doubles what is counted and leaves the loss as it is."""
    for loss_fn, count_fn, batch in LOSSES.values():
        double = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), batch)
        assert count_fn(double) == 2 * count_fn(batch) > 0
        model, params = adapted
        losses = (loss_fn(params, model, rows, None)[0] for rows in (batch, double))
        np.testing.assert_allclose(*losses, rtol=1e-5)
    assert num_tokens(BATCH) == 11
    assert num_tokens(PACKED) == 9  # the first token of a segment is never predicted
    assert num_pairs(PAIRS) == 2
    assert num_answers(ANSWERS) == 3


@pytest.mark.heavy
def test_both_modes_and_second_derivatives_are_those_of_the_whole(adapted):
    model, params = adapted
    direction = optax.tree.random_like(jax.random.key(3), params, jax.random.normal)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(loss_fn):
        loss = lambda p: loss_fn(p, model, BATCH, None)[0]
        along = lambda p: jax.jvp(loss, (p,), (direction,))[1]
        return along(params), jax.grad(along)(params)

    assert_close(*map(derivatives, (in_parts(sft_loss, num_tokens, num_parts=2), sft_loss)))


def compiled_gradient(num_parts):
    """The program of three clients with sixteen rows each."""
    base = tiny_model(num_layers=1, hidden_size=48, intermediate_size=256)
    model, params = add_lora(base, jax.random.key(0), rank=2, alpha=4)
    batch = {"tokens": jnp.zeros((3, 16, 32), jnp.int32), "loss_mask": jnp.ones((3, 16, 32), bool)}
    loss_fn = in_parts(sft_loss, num_tokens, num_parts=num_parts)
    step = lambda p, m, rows: jax.grad(loss_fn, has_aux=True)(p, m, rows, None)[0]
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params)
    return jax.jit(jax.vmap(step, in_axes=(0, None, 0))).lower(stacked, model, batch).compile()


@pytest.mark.heavy
def test_memory_is_that_of_one_part_and_the_base_stays_shared():
    whole, parts = (compiled_gradient(number) for number in (1, 8))
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (whole, parts)]
    assert sizes[1] < 0.3 * sizes[0]
    assert "f32[3,48,256]" not in parts.as_text()  # one up_proj per client


@pytest.mark.heavy
def test_dropout_is_drawn_anew_for_each_part(adapted):
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4, dropout=0.5)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    row = jax.tree.map(lambda leaf: leaf[:1], BATCH)
    equal = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), row)
    loss_of = lambda rows, key, parts: in_parts(sft_loss, num_tokens, num_parts=parts)(
        params, model, rows, key
    )[0]
    key = jax.random.key(0)
    one = [loss_of(row, jax.random.fold_in(key, i), 1) for i in range(2)]
    assert one[0] != one[1]
    np.testing.assert_allclose(loss_of(equal, key, 2), sum(one) / 2, rtol=1e-5)


def test_rows_that_parts_do_not_divide_are_refused(adapted):
    model, params = adapted
    with pytest.raises(ValueError, match="4 rows are not divided by num_parts=3"):
        in_parts(sft_loss, num_tokens, num_parts=3)(params, model, BATCH, None)
