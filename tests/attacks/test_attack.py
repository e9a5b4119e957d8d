"""The parts that all attacks share: spans, scores, and what an adversary is given."""

import numpy as np
import pytest

from fedjax_post import attacks
from fedjax_post.attacks import evidence, span


def test_distance_from_a_span_is_the_residual_of_least_squares():
    rng = np.random.default_rng(0)
    matrix, vectors = rng.normal(size=(9, 4)), rng.normal(size=(5, 9))
    found = span.distances(span.space_of(matrix), vectors)
    for vector, distance in zip(vectors, found, strict=True):
        fit = matrix @ np.linalg.lstsq(matrix, vector, rcond=None)[0]
        assert distance == pytest.approx(np.linalg.norm(vector - fit) / np.linalg.norm(vector))


def test_a_space_has_the_rank_of_its_matrix():
    rng = np.random.default_rng(1)
    matrix = (rng.normal(size=(12, 3)) @ rng.normal(size=(3, 20))).astype(np.float32)
    assert span.space_of(matrix).rank == np.linalg.matrix_rank(matrix) == 3
    assert not span.space_of(matrix).is_whole
    assert span.space_of(rng.normal(size=(12, 20))).is_whole


def test_noise_beyond_the_signal_is_not_taken_for_rank():
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 40))
    noise = 1e-3 * rng.normal(size=(30, 40))
    assert span.space_of(signal + noise, noise=1e-3).rank == 4
    assert span.space_of(signal + noise).is_whole


def test_of_two_sides_with_equal_ranks_the_one_above_the_noise_is_believed():
    """The gradient of A is as small as B, and rounding turns its weakest direction."""
    rng = np.random.default_rng(3)
    inputs, a = rng.normal(size=(3, 16)), rng.normal(size=(16, 8)).astype(np.float32)
    start = {
        "lora": {"layers": {"attention": {"k_proj": {"a": a[None], "b": np.zeros((1, 8, 5))}}}}
    }
    b = (inputs @ a).T @ rng.normal(size=(3, 5))
    for size, side in ((1e-5, "b"), (1.0, "a")):
        change = size * (inputs.T @ rng.normal(size=(3, 8))) + 1e-8 * rng.normal(size=(16, 8))
        change = {"k_proj": {"a": change[None], "b": 1e-3 * b[None]}}
        sent = attacks.Sent(0, (0,), start, {"lora": {"layers": {"attention": change}}}, 1.0)
        (found,) = evidence.checks(sent, 0)
        assert found.space.rank == 3
        assert (found.through is None) == (side == "a")


def test_rouge_equals_the_values_of_its_package():
    """The example in the README of `rouge_score`; ROUGE-2 has 2 of 8 and of 7 pairs in common."""
    truth = "The quick brown fox jumps over the lazy dog"
    guess = "The quick brown dog jumps on the log."
    assert attacks.rouge(guess, truth, 1) == pytest.approx(0.7058823529411765)
    assert attacks.rouge(guess, truth, 2) == pytest.approx(2 * 2 / (7 + 8))
    assert attacks.rouge("", truth, 1) == 0 == attacks.rouge("one", "one", 2)


def test_rows_are_matched_one_to_one_and_the_end_token_does_not_count():
    decode = lambda row: " ".join(f"w{token}" for token in row)
    truth = [(5, 6, 7, 1), (8, 9, 1)]
    found = attacks.score([(8, 9), (5, 6, 7), (5, 6)], truth, decode_fn=decode, eos_id=1)
    assert found == attacks.Score(100.0, 100.0, 1.0, 2, 3)
    twice = attacks.score([(5, 6, 7), (5, 6, 7)], truth, decode_fn=decode, eos_id=1)
    assert twice.rouge1 == 50
    assert twice.exact == 0.5
    assert attacks.score([], truth, decode_fn=decode, eos_id=1).rouge1 == 0


def test_an_adversary_is_given_no_rows_no_state_and_no_files():
    """What it may know is listed here; a new field is a decision."""
    assert attacks.Seen._fields == ("adversary", "public", "sent")
    assert attacks.Sent._fields == ("round", "clients", "start", "change", "num_steps")
    assert attacks.Public._fields == (
        *("model", "decode_fn", "optimizer", "learning_rate", "batch_size", "max_length"),
        *("eos_id", "pad_id"),
    )
