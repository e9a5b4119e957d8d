"""DAGER: what it finds, and where it stops by itself."""

import numpy as np
import pytest
from attacks.victims import EOS, decode, full, lora, noisy, rows_of, visit

from fedjax_post import attacks


def scored(public, sent, rows, **settings):
    guess = attacks.dager(**settings).invert(public, sent)
    return guess, attacks.score(guess.rows, rows.tolist(), decode_fn=decode, eos_id=EOS)


@pytest.mark.heavy
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_on_all_weights_shows_every_row_exactly(count):
    rows = rows_of(0, count)
    guess, found = scored(*visit(*full(), [rows]), rows)
    assert (found.rouge1, found.rouge2, found.exact) == (pytest.approx(100), pytest.approx(100), 1)
    assert found.guessed == count
    assert guess.stopped == ""


@pytest.mark.heavy
def test_rows_without_a_common_first_token_are_found_and_nothing_else():
    """As of models whose tokenizer puts none; a token repeated from the start on always passes."""
    rows = rows_of(0, 2)[:, 1:]
    guess, found = scored(*visit(*full(), [rows]), rows)
    assert (found.exact, found.guessed) == (1, 2)
    assert guess.stopped == ""


@pytest.mark.heavy
def test_b_alone_shows_every_row_if_the_rank_exceeds_the_tokens():
    """Before the first round B is 0, so the gradient of A is 0 and that of B shows x A."""
    model, params = lora(24)
    rows = rows_of(1, 2)
    public, sent = visit(model, params, [rows])
    assert not np.any(sent.change["lora"]["layers"]["attention"]["k_proj"]["a"])
    _, found = scored(public, sent, rows)
    assert found.exact == 1


@pytest.mark.heavy
def test_ranks_of_the_projections_add_up_once_b_is_not_zero():
    """Fourteen inputs, rank 8: one projection's A could not tell them apart, three can."""
    rows = rows_of(1, 2)
    _, found = scored(*visit(*lora(8, warm=0.5), [rows]), rows)
    assert found.exact == 1


@pytest.mark.heavy
@pytest.mark.parametrize("warm", [0.0, 0.5])
def test_a_rank_below_the_tokens_stops_it_and_it_says_so(warm):
    rows = rows_of(2, 3)
    guess, found = scored(*visit(*lora(4, warm=warm), [rows]), rows)
    assert found.exact == 0
    assert guess.stopped


def test_more_tokens_than_the_width_stop_it():
    """As in the sum over a cohort, which is all that a server reads under secure sums."""
    rows = rows_of(3, 16)
    guess, found = scored(*visit(*full(), [rows]), rows)
    assert found.guessed == 0
    assert "spans everything" in guess.stopped


def test_noise_of_a_tenth_of_the_change_stops_it():
    rows = rows_of(0, 1)
    public, sent = visit(*full(), [rows])
    guess, found = scored(public, noisy(sent, 0.1), rows)
    assert found.exact == 0
    assert guess.stopped


@pytest.mark.heavy
def test_steps_of_an_adapter_still_show_which_tokens_were_read():
    """The inputs of the first layer are frozen, whatever the steps change."""
    batches = [rows_of(4, 1), rows_of(5, 1)]
    public, sent = visit(*lora(16, warm=0.1), batches, learning_rate=0.01)
    guess = attacks.dager().invert(public, sent)
    true = {token for rows in batches for token in rows[0, :-1].tolist()}
    assert guess.numbers["tokens"] == len(true)


def test_a_message_without_an_attention_stops_it():
    public, sent = visit(*full(), [rows_of(0, 1)])
    sent = sent._replace(change={"lora": {"layers": {"mlp": {}}}})
    assert "no change of an attention" in attacks.dager().invert(public, sent).stopped


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.0}, {"token_threshold": 0.0}, {"max_beginnings": 0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        attacks.dager(**wrong)
