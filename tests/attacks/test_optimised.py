"""Attacks that search: by the distance of gradients, and by evidence with a language model."""

import jax
import numpy as np
import pytest
from attacks.victims import EOS, LENGTH, decode, full, lora, rows_of, visit

from fedjax_post import attacks
from fedjax_post.attacks.lamp import distance


def scored(attack, given, sent, rows):
    guess = attack.invert(given, sent)
    return guess, attacks.score(guess.rows, rows, decode_fn=decode, eos_id=EOS)


@pytest.mark.heavy
@pytest.mark.parametrize("l1", [None, 0.01])
def test_the_true_rows_have_the_gradient_that_was_seen(l1):
    rows = rows_of(0, 2)
    given, sent = visit(*lora(4), [rows], learning_rate=1.0)
    how = {"response": LENGTH - 1, "l1": l1, "prior": 0.0}
    hot = lambda rows: jax.nn.one_hot(rows, 64)
    true = float(distance(given, sent, hot(rows), **how))
    other = float(distance(given, sent, hot(rows_of(1, 2)), **how))
    assert true < 1e-2 * other


@pytest.mark.heavy
def test_utr_finds_rows_after_several_steps():
    """A span of the second layer's start is near, not exact, once the adapter has moved."""
    batches = [rows_of(4, 1), rows_of(5, 1)]
    rows = np.concatenate(batches).tolist()
    given, sent = visit(*lora(16, warm=0.1), batches, learning_rate=0.01)
    _, found = scored(attacks.utr(words=16, prior=0.05), given, sent, rows)
    assert found.rouge1 > 80


@pytest.mark.heavy
def test_utr_finds_rows_without_a_common_first_token():
    rows = rows_of(0, 1)[:, 1:]
    given, sent = visit(*lora(16), [rows])
    _, found = scored(attacks.utr(), given, sent, rows.tolist())
    assert found.rouge1 > 80


@pytest.mark.heavy
def test_utr_is_stopped_by_more_tokens_than_ranks():
    rows = rows_of(2, 12)
    given, sent = visit(*lora(2), [rows])
    guess, found = scored(attacks.utr(), given, sent, rows.tolist())
    assert found.rouge1 == 0
    assert "show nothing" in guess.stopped


def test_several_steps_have_no_single_gradient():
    given, sent = visit(*lora(4), [rows_of(0, 1), rows_of(1, 1)])
    assert "utr" in attacks.lamp(length=LENGTH).invert(given, sent).stopped


@pytest.mark.heavy
def test_lamp_finds_most_tokens_of_a_row_from_a_full_gradient():
    rows = rows_of(0, 1)
    given, sent = visit(*full(), [rows])
    guess, found = scored(attacks.lamp(length=LENGTH, prior=0.0), given, sent, rows.tolist())
    assert guess.numbers["distance"] < guess.numbers["distance_at_start"] / 2
    assert found.rouge1 > 60


@pytest.mark.parametrize(
    ("factory", "wrong"),
    [
        (attacks.utr, {"width": 0}),
        (attacks.utr, {"prior": -1.0}),
        (attacks.lamp, {"length": 1}),
        (attacks.lamp, {"length": 4, "steps": 2}),
    ],
)
def test_wrong_settings_are_refused(factory, wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        factory(**wrong)
