"""Scores against their definitions, computed directly."""

import jax
import numpy as np
import pytest

from fedjax_post.data.table import gather
from fedjax_post.evaluate.generation import greedy_answers, matches, reference_answers
from fedjax_post.evaluate.heldout import HeldOut, choose_rows
from fedjax_post.evaluate.loss import mean_loss, row_losses
from fedjax_post.evaluate.scores import left_out, mean_scores, measure, score
from fedjax_post.testing.models import tiny_model

EOS = 1
_LOGITS = jax.jit(lambda model, tokens: model.logits({}, tokens))
ROWS = np.arange(5)


def decode(ids):
    return " ".join(str(i) for i in ids)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def logits(model, tokens):
    """Logits `[L, V]` of one sequence; one shape is compiled, and what follows does not matter."""
    padded = np.zeros((1, 16), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_LOGITS(model, padded))[0]


def direct_nats(model, table, row):
    """Nats of one row's response, one row at a time."""
    length, prompt = int(table.length[row]), int(table.prompt_length[row])
    tokens = gather(table, np.array([row]))[0]
    log_probs = jax.nn.log_softmax(logits(model, tokens[0].tolist()), axis=-1)
    return -sum(float(log_probs[t - 1, tokens[0, t]]) for t in range(prompt, length))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_loss_is_the_direct_sum_whatever_the_batch(model, table, batch_size):
    losses = row_losses(model, {}, table, rows=ROWS, batch_size=batch_size)
    np.testing.assert_allclose(losses.nats, [direct_nats(model, table, r) for r in ROWS], rtol=1e-5)
    assert losses.num_tokens.tolist() == (table.length - table.prompt_length).tolist()
    assert mean_loss(losses) == pytest.approx(losses.nats.sum() / losses.num_tokens.sum())


def direct_answer(model, table, row, num_new):
    """Greedy continuation of one prompt without a cache, up to the end token."""
    tokens = gather(table, np.array([row]))[0][0, : table.prompt_length[row]].tolist()
    answer = []
    for _ in range(num_new):
        chosen = int(logits(model, tokens + answer)[len(tokens + answer) - 1].argmax())
        if chosen == EOS:
            break
        answer.append(chosen)
    return decode(answer)


@pytest.mark.heavy
def test_answers_are_greedy_whatever_the_batch(model, table):
    longest = int((table.length - table.prompt_length).max())
    expected = [direct_answer(model, table, row, longest) for row in ROWS]
    for batch_size in (2, 5):
        heldout = HeldOut(table, ROWS, decode, EOS, exact_match=True, batch_size=batch_size)
        assert greedy_answers(model, {}, heldout) == expected


def test_answers_are_those_without_a_shared_prefix(model, make):
    table = make([([2, 3, *rest], [4]) for rest in ([7], [8, 9], [10, 11, 12])])
    heldout = HeldOut(table, np.arange(3), decode, EOS, exact_match=True, longest=6, batch_size=2)
    whole = greedy_answers(model, {}, heldout)
    assert greedy_answers(model, {}, heldout._replace(prefix=(2, 3))) == whole


def test_references_are_the_responses_without_their_end(table):
    found = reference_answers(HeldOut(table, np.array([0]), decode, EOS, exact_match=True))
    tokens = gather(table, np.array([0]))[0][0]
    assert found == [decode(tokens[table.prompt_length[0] : table.length[0] - 1].tolist())]


def test_matches_are_to_the_letter_but_for_outer_spaces():
    assert matches(["a b ", "a  b", "A b", ""], ["a b"] * 4).tolist() == [True, False, False, False]


def test_scores_of_kinds_make_up_the_whole(model, table):
    scores = score(model, {}, HeldOut(table, ROWS, decode, EOS, exact_match=True, batch_size=4))
    kinds = scores["per_task"]
    counts = {k: int((table.length - table.prompt_length)[table.label == k].sum()) for k in kinds}
    whole = sum(kinds[k]["loss"] * counts[k] for k in kinds) / sum(counts.values())
    assert scores["loss"] == pytest.approx(whole)
    assert scores["exact_match"] == pytest.approx(
        (2 * kinds["a"]["exact_match"] + 3 * kinds["b"]["exact_match"]) / 5
    )


def test_exact_match_counts_what_the_model_would_say(model, table, make):
    """A table whose responses are the model's own answers is answered in full."""
    prompts = [gather(table, np.array([r]))[0][0, : table.prompt_length[r]].tolist() for r in ROWS]
    answers = [[int(t) for t in direct_answer(model, table, r, 2).split()] for r in ROWS]
    rows = list(zip(prompts, answers, strict=True))
    rows[3] = (rows[3][0], [(answers[3] or [5])[0] % 29 + 2, 7])  # one answer is wrong
    # as many tokens as the model may say, so that no answer ends early
    heldout = HeldOut(make(rows), ROWS, lambda ids: decode(ids[:2]), EOS, exact_match=True)
    assert score(model, {}, heldout)["exact_match"] == pytest.approx(0.8)


def test_rows_that_no_answer_can_match_are_left_out_of_exact_match(model, make):
    """One without a prompt cannot be asked, and one whose response is no label is never right."""
    table = make([([2, 3], [5]), ([], [5]), ([2, 4], [9])])
    heldout = HeldOut(table, np.arange(3), decode, EOS, exact_match=True)
    assert left_out(heldout) == {"exact_match": 1}
    labelled = heldout._replace(labels=(" 5", "6"))
    assert left_out(labelled) == {"exact_match": 2}
    found = measure(model, {}, labelled).shares["exact_match"]
    assert np.isnan(found).tolist() == [False, True, True]


def test_without_exact_match_nothing_is_generated(model, table):
    assert "exact_match" not in score(model, {}, HeldOut(table, ROWS, None, EOS, False))


def test_mean_scores_are_means_of_every_number():
    one = {"loss": 1.0, "per_task": {"a": {"loss": 2.0}}}
    two = {"loss": 3.0, "per_task": {"a": {"loss": 6.0}}}
    assert mean_scores([one, two]) == {"loss": 2.0, "per_task": {"a": {"loss": 4.0}}}


def test_chosen_rows_are_distinct_and_the_same_for_a_seed():
    assert choose_rows(5).tolist() == [0, 1, 2, 3, 4]
    assert choose_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    chosen = choose_rows(100, 10, seed=1)
    assert len(set(chosen.tolist())) == 10
    assert chosen.tolist() == choose_rows(100, 10, seed=1).tolist()
    assert chosen.tolist() != choose_rows(100, 10, seed=2).tolist()


def test_an_answer_is_the_label_that_it_begins_with():
    answers = ["happy.", " sad and", "happyhappy", "very bad", "very badly", ""]
    references = ["happy", "sad", "happy", "very bad", "very bad", "sad"]
    read = matches(answers, references, labels=("happy", "sad", "very", "very bad"))
    assert read.tolist() == [True, True, False, True, False, False]
    assert matches(answers, references).tolist() == [False, False, False, True, False, False]
    spaced = matches(
        ["great", "not-good", "1.5"], ["great", "not", "1"], labels=(" great", "not", "1")
    )
    assert spaced.tolist() == [True, False, False]
