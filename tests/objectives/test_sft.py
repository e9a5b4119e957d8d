"""Laws of the supervised loss."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.adapters.lora import add_lora
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.objectives.tokens import masked_mean, masked_sum, token_log_probs
from fedjax_post.testing.models import tiny_model

TOKENS = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
MASK = jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], bool)


def test_loss_is_the_mean_over_response_tokens():
    model = tiny_model()
    loss, metrics = sft_loss({}, model, {"tokens": TOKENS, "loss_mask": MASK}, None)
    probs = jax.nn.softmax(model.logits({}, TOKENS), axis=-1)
    at = [(0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    expected = np.mean([-np.log(probs[b, i - 1, TOKENS[b, i]]) for b, i in at])
    right = np.mean([np.argmax(probs[b, i - 1]) == TOKENS[b, i] for b, i in at])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss)
    np.testing.assert_allclose(metrics["accuracy"], right)


def test_log_probs_equal_golden(test_data):
    from fedjax_post.hub.load import load_model

    folder = test_data / "models" / "stories260K"
    golden, model = np.load(folder / "golden.npz"), load_model(folder)
    ids = jnp.asarray(golden["ids_0"])[None]
    ours = token_log_probs(model.logits({}, ids), ids)[0]
    np.testing.assert_allclose(ours, golden["token_logprob_0"], atol=1e-4)


def test_no_response_tokens_give_zero_and_finite_gradients():
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=2)
    batch = {"tokens": TOKENS, "loss_mask": jnp.zeros(TOKENS.shape, bool)}
    grad = jax.jit(jax.value_and_grad(lambda p: sft_loss(p, model, batch, None)[0]))
    loss, grads = grad(params)
    assert loss == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grads))


def test_the_first_token_is_never_predicted():
    batch = {"tokens": TOKENS, "loss_mask": MASK.at[:, 0].set(True)}
    loss, _ = sft_loss({}, tiny_model(), batch, None)
    expected, _ = sft_loss({}, tiny_model(), {**batch, "loss_mask": MASK}, None)
    np.testing.assert_array_equal(loss, expected)


def test_packed_rows_have_the_loss_of_their_parts():
    model = tiny_model()
    parts = [(TOKENS[:1], MASK[:1]), (TOKENS[1:, :3], MASK[1:, :3])]
    sums = [sft_loss({}, model, {"tokens": t, "loss_mask": m}, None)[0] * m.sum() for t, m in parts]
    packed = {
        "tokens": jnp.concatenate([t for t, _ in parts], axis=1),
        "loss_mask": jnp.concatenate([m for _, m in parts], axis=1),
        "segments": jnp.array([[1] * 5 + [2] * 3]),
    }
    loss, _ = sft_loss({}, model, packed, None)
    np.testing.assert_allclose(loss, sum(sums) / 5, rtol=1e-5)


def test_masked_reductions_ignore_what_is_masked_even_if_not_finite():
    values = jnp.array([[1.0, jnp.inf, 3.0]])
    mask = jnp.array([[True, False, True]])
    assert masked_mean(values, mask) == 2
    assert masked_sum(values, mask)[0] == 4
