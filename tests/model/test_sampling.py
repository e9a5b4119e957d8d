"""Laws of sampling: greedy limits, the model's frequencies, and independent rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.model.generate import Sampling, filter_logits, generate, sample
from fedjax_post.testing.models import tiny_model

PROMPTS = jnp.array([[3, 7, 1], [9, 4, 2]])
MASK = jnp.ones((2, 3), bool)
RULE = Sampling(max_new_tokens=6, eos_id=99, pad_id=0)


def drawn(rule, prompts=PROMPTS, seed=0):
    mask = jnp.ones(prompts.shape, bool)
    return np.asarray(sample(tiny_model(), {}, prompts, mask, rule=rule, key=jax.random.key(seed)))


@pytest.mark.heavy
@pytest.mark.parametrize("change", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_limits_are_greedy(change):
    greedy = generate(tiny_model(), {}, PROMPTS, MASK, max_new_tokens=6, eos_id=99, pad_id=0)
    np.testing.assert_array_equal(drawn(RULE._replace(**change)), greedy)


def test_frequencies_are_the_models():
    """Chi-square of 4000 first tokens at temperature 1.5 against the softmax."""
    num, temperature = 4000, 1.5
    rule = Sampling(1, 99, 0, temperature=temperature)
    counts = np.bincount(drawn(rule, jnp.tile(PROMPTS[:1], (num, 1)))[:, 0], minlength=32)
    logits = tiny_model().logits({}, PROMPTS[:1])[0, -1] / temperature
    expected = num * np.asarray(jax.nn.softmax(logits))
    assert ((counts - expected) ** 2 / expected).sum() < 70  # 31 degrees: p = 1e-4 at 69


def test_a_row_does_not_depend_on_the_others():
    both = drawn(RULE)
    np.testing.assert_array_equal(drawn(RULE, PROMPTS.at[1].set(5))[0], both[0])
    assert (drawn(RULE, seed=1) != both).any()


def test_top_k_and_top_p_keep_what_they_should():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    for change, kept in [
        ({}, 4),
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 4),
        ({"top_p": 0.39}, 1),
        ({"top_p": 0.41}, 2),
        ({"top_p": 0.71}, 3),
        ({"top_k": 2, "top_p": 0.6}, 2),
        ({"top_k": 2, "top_p": 0.5}, 1),
    ]:
        finite = np.isfinite(filter_logits(logits, RULE._replace(**change)))[0]
        assert finite.tolist() == [True] * kept + [False] * (4 - kept), change


def test_stop_sequences_end_a_row():
    free = drawn(RULE)
    stop = (tuple(int(t) for t in free[0, 2:4]), (50, 51), (1,) * 9)
    stopped = drawn(RULE._replace(stop=stop))
    np.testing.assert_array_equal(stopped[0, :4], free[0, :4])
    assert (stopped[0, 4:] == 0).all()
    np.testing.assert_array_equal(stopped[1], free[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"stop": ((),)}, "stop sequence is empty"),
    ],
)
def test_rules_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        drawn(RULE._replace(**change))
    with pytest.raises(ValueError, match="pass a key"):
        sample(tiny_model(), {}, PROMPTS, MASK, rule=RULE)
