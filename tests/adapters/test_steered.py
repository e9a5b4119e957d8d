"""Laws of proxy-tuning: its limits; scoring and generation work as for any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.adapters.steered import steer
from fedjax_post.core.access import Access
from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.scores import score
from fedjax_post.model.generate import _decode, generate
from fedjax_post.testing.models import tiny_model

TOKENS = jnp.arange(24).reshape(2, 12) * 7 % 32
MASK = jnp.arange(12)[None] >= jnp.array([[2], [0]])


@pytest.fixture(scope="module")
def target():
    return tiny_model(num_layers=3)


@pytest.fixture(scope="module")
def proxy():
    return add_lora(tiny_model(5, hidden_size=8, head_dim=2), jax.random.key(1), rank=2, alpha=4)


def trained(params, by=0.3):
    return jax.tree.map(lambda x: x + by, params)


def greedy(model, params, **how):
    how = {"max_new_tokens": 6, "eos_id": 99, "pad_id": 0, **how}
    return generate(model, params, TOKENS, MASK, **how)


@pytest.mark.heavy
def test_alpha_zero_is_the_target(target, proxy):
    small, params = proxy
    steered = steer(target, small, alpha=0.0)
    np.testing.assert_array_equal(
        steered.logits(trained(params), TOKENS), target.logits({}, TOKENS)
    )
    np.testing.assert_array_equal(greedy(steered, trained(params)), greedy(target, {}))


def test_an_untrained_proxy_steers_nowhere(target, proxy):
    small, params = proxy
    steered = steer(target, small)
    np.testing.assert_allclose(steered.logits(params, TOKENS), target.logits({}, TOKENS), atol=1e-5)
    moved = steered.logits(trained(params), TOKENS)
    assert np.abs(moved - target.logits({}, TOKENS)).max() > 0.1


@pytest.mark.heavy
@pytest.mark.parametrize("read", ["logits", "scores", "total_loss", "answer", "next_scores"])
def test_steered_by_itself_it_is_the_tuned_model(read):
    """Proxy and target of one architecture and weights, alpha 1: nothing but the tuned model."""
    model, params = add_lora(tiny_model(), jax.random.key(1), rank=2, alpha=4)
    params = trained(params)
    arguments = {
        "logits": (TOKENS,),
        "scores": (TOKENS,),
        "total_loss": (TOKENS, MASK),
        "next_scores": (TOKENS, MASK, jnp.array([3, 9, 4])),
        "answer": (TOKENS, MASK),
    }[read]
    how = {"max_new_tokens": 6, "eos_id": 99, "pad_id": 0} if read == "answer" else {}
    found, expected = (
        getattr(m, read)(params, *arguments, **how) for m in (steer(model, model), model)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def test_logits_are_the_equation(target, proxy):
    small, params = proxy
    tuned, untuned = (small.logits(held, TOKENS) for held in (trained(params), {}))
    np.testing.assert_allclose(
        steer(target, small, alpha=0.5).logits(trained(params), TOKENS),
        np.asarray(target.logits({}, TOKENS)) + 0.5 * (np.asarray(tuned) - np.asarray(untuned)),
        atol=1e-5,
    )


@pytest.mark.heavy
def test_generation_follows_the_logits_of_whole_rows(target, proxy):
    """Three caches against none: the likeliest token after each prefix, row by row."""
    small, params = proxy
    steered, params = steer(target, small, alpha=1.5), trained(params, 0.5)
    answers = greedy(steered, params)
    row = np.asarray(TOKENS[:1])  # padded on the left by two
    row = row[:, 2:]
    for token in np.asarray(answers[0]):
        assert np.asarray(steered.logits(params, jnp.asarray(row)))[0, -1].argmax() == token
        row = np.append(row, [[token]], axis=1)
    assert np.any(np.asarray(answers) != np.asarray(greedy(target, {})))


@pytest.mark.heavy
def test_a_view_of_logits_is_enough_and_is_compiled_once(target, proxy):
    small, params = proxy
    params = trained(params)
    expected = greedy(steer(target, small), params)
    np.testing.assert_array_equal(
        greedy(steer(target.restrict(Access.LOGITS), small), params), expected
    )
    before = _decode._cache_size()
    greedy(steer(target.restrict(Access.LOGITS), small), params)
    assert _decode._cache_size() == before


@pytest.mark.heavy
def test_scoring_takes_it_like_any_model(target, proxy):
    small, params = proxy
    rows = np.array([[1, 5, 6, 7, 2], [1, 9, 4, 3, 2], [1, 3, 8, 6, 2]], np.int32)
    rows[:, 3:] = ~rows[:, 3:]  # two response tokens each
    number = np.ones(3, np.int32)
    table = TokenTable(
        (rows.ravel(),),
        0 * number,
        np.arange(3) * 5,
        5 * number,
        3 * number,
        max_length=8,
        pad_id=0,
    )
    heldout = HeldOut(table, np.arange(3), str, eos_id=2, exact_match=True, batch_size=2)
    found = score(steer(target, small, alpha=0.0), trained(params), heldout)
    expected = score(target, {}, heldout)
    assert found["exact_match"] == expected["exact_match"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    steered = score(steer(target, small), trained(params), heldout)
    assert abs(steered["loss"] - expected["loss"]) > 0.01


def test_another_vocabulary_is_refused(target):
    with pytest.raises(ValueError, match=r"`proxy` has 40 tokens and the target 32"):
        steer(target, tiny_model(vocab_size=40))


def test_the_shorter_context_counts(target):
    steered = steer(target, tiny_model(max_positions=16))
    assert steered.config.max_positions == 16
    with pytest.raises(ValueError, match="context of 16"):
        greedy(steered, {})
