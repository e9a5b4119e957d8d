"""Discrete prompts: estimates against enumeration, layouts and votes against slower ways."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from fedjax_post.blackbox import consensus, discrete, shots
from fedjax_post.core.algorithm import ClientData, no_context
from fedjax_post.testing import toy_prompt

PLACES, CHOICES = 2, 3
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(CHOICES, CHOICES)).astype(np.float32)  # the loss of every prompt
PROBS = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], np.float32)
PROMPTS = np.array(list(itertools.product(range(CHOICES), repeat=PLACES)), np.int32)
CHANCE = PROBS[0, PROMPTS[:, 0]] * PROBS[1, PROMPTS[:, 1]]
LOSSES = TABLE[PROMPTS[:, 0], PROMPTS[:, 1]]


@pytest.mark.parametrize("num_samples", [2, 3])
def test_the_estimate_has_the_derivative_for_its_mean(num_samples):
    """Over all ways to draw the prompts, weighed by their chance; up to one shift for a place."""
    sets = np.array(list(itertools.product(range(len(PROMPTS)), repeat=num_samples)))
    one = jax.jit(jax.vmap(discrete.score_gradient, (0, 0, None)))
    estimates = one(PROMPTS[sets], LOSSES[sets], PROBS)
    mean = np.einsum("s,spn->pn", CHANCE[sets].prod(axis=1), estimates)
    derivative = np.stack([TABLE @ PROBS[1], PROBS[0] @ TABLE])  # of p0 @ TABLE @ p1
    np.testing.assert_allclose(mean, derivative - PROBS[0] @ TABLE @ PROBS[1], atol=1e-5)


def test_what_was_not_drawn_adds_nothing_but_a_factor_of_two():
    """Authors' terms: 1 / p for the choice that was drawn, -1 / p for all others."""
    chosen = np.array([[0, 1], [2, 1], [0, 0], [1, 2]], np.int32)
    losses = RNG.normal(size=4).astype(np.float32)
    signs = np.where(chosen[..., None] == np.arange(CHOICES), 1, -1)
    theirs = np.einsum("k,kpn->pn", (losses - losses.mean()) / 3, signs / PROBS)
    ours = discrete.score_gradient(chosen, losses, PROBS)
    np.testing.assert_allclose(2 * ours, theirs, atol=1e-5)


def test_a_choice_of_no_probability_has_no_gradient():
    probs = jnp.array([[0.0, 1.0]])
    gradient = discrete.score_gradient(jnp.ones((3, 1), jnp.int32), jnp.arange(3.0), probs)
    assert np.isfinite(gradient).all()
    assert gradient[0, 0] == 0


def test_updates_end_at_the_closest_distribution():
    """No distribution on a fine grid is closer, row by row."""
    probs, updates = jnp.asarray(PROBS), jnp.array([[0.5, -1.0, 0.1], [-0.3, -0.2, -0.4]])
    tx = discrete.onto_simplex()
    moved, _ = tx.update(updates, tx.init(probs), probs)
    landed = np.asarray(probs + moved)
    np.testing.assert_allclose(landed.sum(axis=1), 1, atol=1e-6)
    steps = np.array([(a, b, 60 - a - b) for a in range(61) for b in range(61 - a)]) / 60
    for row, goal in zip(landed, np.asarray(probs + updates), strict=True):
        assert row.min() >= 0
        assert np.sum((row - goal) ** 2) <= np.min(np.sum((steps - goal) ** 2, axis=1)) + 1e-6


def test_a_visit_is_asked_as_one_batch_would_be():
    """Batches count by their questions, steps that are not taken do not count at all."""
    arrays = [toy_prompt.toy_arrays()[k] for k in (0, 1, 2)]
    batches = jax.tree.map(lambda *x: np.stack([part[:4] for part in x]), *arrays)
    batches["loss_mask"][1, 2:] = False  # half a batch of padding
    data = ClientData(batches, np.array([True, True, False]), 1.0, 1.0, 0)
    prompts = jnp.array([[0, 1, 2], [5, 5, 7]], jnp.int32)
    model, key = toy_prompt.toy_model(), jax.random.key(0)
    losses, told = discrete.ask_visit(toy_prompt.toy_loss, prompts, model, data, no_context())
    rows = jax.tree.map(lambda x: x[:2].reshape(-1, *x.shape[2:]), batches)
    alone = [toy_prompt.toy_loss(discrete.with_tokens(p), model, rows, key)[0] for p in prompts]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    np.testing.assert_allclose(told["loss"], np.mean(alone), rtol=1e-5)
    assert told["queries"] == 2 * 6
    assert told["tokens_sent"] == 2 * 6 * 3


def test_edits_are_all_different_until_there_are_no_more():
    candidates = jnp.array([7, 8, 9])
    places, tokens = discrete.draw_edits(jax.random.key(0), 2, candidates, num=6)
    assert set(zip(places.tolist(), tokens.tolist(), strict=True)) == set(
        itertools.product(range(2), [7, 8, 9])
    )


def test_candidates_are_the_frequent_ones():
    found = discrete.frequent_tokens([[4, 4, 1], [4, 2, 2, 9]], 3, excluded=[1, 100])
    assert found.tolist() == [4, 2, 9]
    assert discrete.frequent_tokens([], 3).size == 0


def test_only_a_prompt_of_tokens_is_searched():
    with pytest.raises(ValueError, match="set adapter=text_prompt"):
        discrete.tokens_of({"lora": {}})


BOS, EOS, BREAK = 50, 51, 52
ROWS = {
    "tokens": np.array([[BOS, 1, 2, 3, EOS, 0], [BOS, 4, 5, 6, 7, EOS], [9, 9, 9, 9, 9, 9]]),
    "loss_mask": np.array([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool),
}
LAYOUT = {"separator": jnp.int32(BREAK), "dropped": jnp.array([BOS, EOS])}


@pytest.mark.parametrize(
    ("width", "line", "num_tokens", "num_labels"),
    [
        (12, [BREAK, BREAK, BREAK, 1, 2, 3, BREAK, 4, 5, 6, 7, BREAK], 7, 2),
        (6, [BREAK, 4, 5, 6, 7, BREAK], 4, 1),
        (8, [BREAK, BREAK, BREAK, 4, 5, 6, 7, BREAK], 4, 1),  # no part of the first row
        (4, [1, 2, 3, BREAK], 3, 1),  # the second row never fits
        (3, [BREAK, BREAK, BREAK], 0, 0),
        (30, [BREAK] * 21 + [1, 2, 3, BREAK, 4, 5, 6, 7, BREAK], 7, 2),
    ],
)
def test_examples_are_laid_out_as_they_would_be_written(width, line, num_tokens, num_labels):
    shown = shots.lay_out(ROWS, **LAYOUT, width=width)
    assert shown.tokens.tolist() == line
    assert (shown.num_tokens, shown.num_labels) == (num_tokens, num_labels)


def test_a_row_is_shown_where_all_of_it_stands():
    line = shots.lay_out(ROWS, **LAYOUT, width=12).tokens
    assert shots.is_shown(ROWS, line, **LAYOUT).tolist() == [True, True, False]
    assert shots.is_shown(ROWS, line[-6:], **LAYOUT).tolist() == [False, True, False]
    assert not shots.is_shown(ROWS, jnp.full(12, BREAK), **LAYOUT).any()


def test_clusters_are_connected_components():
    near = RNG.random((20, 20)) < 0.05
    near |= near.T
    labels = np.asarray(consensus.clusters(jnp.asarray(near)))
    truth = connected_components(near)[1]
    assert ((labels[:, None] == labels[None]) == (truth[:, None] == truth[None])).all()


def test_the_elbow_is_where_distances_begin_to_grow():
    assert consensus.elbow(jnp.array([0.9, 0.1, 0.12, 0.14, 0.8, jnp.inf])) == jnp.float32(0.14)
    assert consensus.elbow(jnp.full(4, 0.5)) == 0
    assert consensus.elbow(jnp.full(4, jnp.inf)) == 0


def vote(prompts, weights):
    """The token of most weight at each place, of equals the lowest."""
    tokens = np.unique(prompts)
    heard = [[weights[prompts[:, p] == t].sum() for t in tokens] for p in range(prompts.shape[1])]
    return tokens[np.argmax(np.round(heard, 5), axis=1)]


@pytest.mark.parametrize("seed", range(5))
def test_where_every_token_means_something_else_it_is_the_vote(seed):
    """Attention decides between equals, so weights are drawn such that there are none."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, 4, size=(6, 5)).astype(np.int32)
    weights = np.append(rng.random(5), 0).astype(np.float32)
    agreed = consensus.agree(jnp.asarray(prompts), jnp.asarray(weights))
    np.testing.assert_array_equal(agreed, vote(prompts[:5], weights[:5] / weights.sum()))


def test_words_that_mean_the_same_vote_together():
    """Two near synonyms outvote the old word that neither outvotes alone."""
    embeddings = np.eye(8, 8, dtype=np.float32)
    embeddings[2] = embeddings[1] + 0.1 * embeddings[7]
    prompts = jnp.array([[1, 4, 5], [2, 4, 5], [3, 4, 5], [3, 4, 5], [1, 4, 6]], jnp.int32)
    agree = jax.jit(consensus.agree)
    assert agree(prompts, jnp.ones(5), embeddings).tolist() == [1, 4, 5]
    prompts = prompts.at[4].set(jnp.array([7, 4, 6]))  # 1 and 2 against two of 3
    assert agree(prompts, jnp.array([1, 1.5, 1, 1, 1]), embeddings)[0] in (1, 2)
    assert consensus.agree(prompts, jnp.array([1, 1.5, 1, 1, 1]))[0] == 3


def test_the_order_of_prompts_does_not_matter():
    rng = np.random.default_rng(1)
    prompts = rng.integers(0, 6, size=(7, 4)).astype(np.int32)
    embeddings = rng.normal(size=(6, 3)).astype(np.float32)
    agree = jax.jit(consensus.agree)
    first = agree(prompts, jnp.ones(7), embeddings)
    for _ in range(5):
        shuffled = rng.permutation(prompts)
        np.testing.assert_array_equal(agree(shuffled, jnp.ones(7), embeddings), first)
