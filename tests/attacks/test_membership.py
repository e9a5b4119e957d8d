"""Membership scores: the numbers of mimir, areas and rates by their definitions, a known model."""

import numpy as np
import pytest
from attack_rows import END, table_of

from fedjax_post.attacks import membership
from fedjax_post.attacks.canaries import extracted
from fedjax_post.attacks.membership import TokenScores, auc, tpr_at_fpr, worth
from fedjax_post.data.table import gather
from fedjax_post.evaluate.loss import row_losses

# mimir's classes of the same names (github.com/iamgroot42/mimir, branch main of 2024), on the
# numbers of `drawn` below; mimir's scores are losses, so that their signs are the opposite
MIMIR = {
    "loss": [2.853269757682913, 3.0892273817479414],
    "reference": [0.15917177077970557, 0.257294791965462],
    "zlib": [0.11413079030731652, 0.23763287551907242],
    "min_k": [5.957434784271523, 4.870240958201867],
    "min_k_plus_plus": [5.285373580872975, 4.585213364876671],
}
MIMIR_HALF = [4.400924946105849, 4.616349680794685]  # min_k with k = 0.5
TEXTS = ("the cold wet tool", "a b c")


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def scores_of(logits, tokens, padding=0):
    """What `token_scores` would say of these logits; padded columns hold nonsense."""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    mean = (p * log_p).sum(-1)
    variance = (p * log_p**2).sum(-1) - mean**2
    own = np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    pad = lambda x, fill: np.pad(x, ((0, 0), (padding, padding)), constant_values=fill)
    counts = np.ones(own.shape, bool)
    return TokenScores(pad(own, -99.0), pad(mean, 5.0), pad(variance, 3.0), pad(counts, False))


def drawn(padding=0):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(2, 12, 9)) * 2
    tokens, other = rng.integers(0, 9, (2, 12)), rng.normal(size=(2, 12, 9))
    return scores_of(logits, tokens, padding), scores_of(other, tokens, padding)


@pytest.mark.parametrize("padding", [0, 3])
def test_scores_are_those_of_mimir(padding):
    found, other = drawn(padding)
    scores = membership.all_scores(found, other, TEXTS)
    assert set(scores) == set(MIMIR)
    for name, expected in MIMIR.items():
        np.testing.assert_allclose(-scores[name], expected, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(-membership.min_k(found, 0.5), MIMIR_HALF, rtol=1e-12)


def test_the_least_of_few_tokens_is_one_token():
    found = TokenScores(np.array([[-3.0, -1.0, 0.0]]), *np.zeros((2, 1, 3)), np.ones((1, 3), bool))
    assert membership.min_k(found).tolist() == [-3.0]


def test_all_tokens_are_the_loss():
    found, _ = drawn(2)
    np.testing.assert_allclose(membership.min_k(found, 1.0), membership.loss(found))


def test_area_and_rates_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 20, 80) + 3.0, rng.integers(0, 20, 120) + 0.0  # with ties
    pairs = members[:, None] - others[None]
    assert auc(members, others) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    thresholds = np.append(np.unique(others), -np.inf)
    for fpr in (0.0, 0.01, 0.1, 0.5):
        best = max((members > t).mean() for t in thresholds if (others > t).mean() <= fpr)
        assert tpr_at_fpr(members, others, fpr) == best


@pytest.mark.heavy
def test_log_probabilities_of_a_model_are_its_losses(learned):
    rows = np.arange(7)
    found = membership.token_scores(
        learned.model, learned.params, learned.table, rows=rows, batch_size=4
    )
    losses = row_losses(learned.model, learned.params, learned.table, rows=rows)
    np.testing.assert_allclose(
        -np.where(found.counts, found.log_prob, 0).sum(1), losses.nats, atol=1e-4
    )
    assert found.counts.sum(1).tolist() == losses.num_tokens.tolist()


def test_moments_of_a_model_are_those_of_its_logits(learned):
    tokens, _ = gather(learned.table, np.arange(2))
    logits = np.asarray(learned.model.logits(learned.params, tokens), np.float64)
    expected = scores_of(logits[:, :-1], tokens[:, 1:])
    found = membership.token_scores(learned.model, learned.params, learned.table, rows=np.arange(2))
    for name in ("log_prob", "mean", "variance"):
        np.testing.assert_allclose(
            getattr(found, name)[:, 1:], getattr(expected, name), atol=2e-3, err_msg=name
        )


def test_a_model_that_knows_its_rows_gives_them_away(learned):
    """Every score separates rows of training from others; nothing does so for the base."""
    rows, texts = np.arange(24), [f"row {i} with some text" for i in range(24)]
    of = lambda params: membership.token_scores(learned.model, params, learned.table, rows=rows)
    found, base = of(learned.params), of({})
    for name, scores in membership.all_scores(found, base, texts).items():
        told = worth(scores[:12], scores[12:], rates=(0.0, 0.1))
        assert told.auc > 0.95, name
        assert told.tpr[0.0] > 0.5, name
    for name, scores in membership.all_scores(base).items():
        assert 0.2 < auc(scores[:12], scores[12:]) < 0.8, name


def test_a_model_continues_the_rows_that_it_knows(learned):
    given = extracted(
        learned.model,
        learned.params,
        learned.table,
        rows=np.arange(24),
        num_tokens=6,
        end=END,
        batch_size=10,
    )
    assert given[:12].mean() > 0.8
    assert not given[12:].any()


def test_a_short_row_is_continued_up_to_its_end(learned):
    """The greedy answer to a known prompt, cut by an end that the model does not give."""
    row = gather(learned.table, np.array([0]))[0][0].tolist()
    cut = table_of([row[:4]], [row[4:6]])  # its third response token is END, not the row's
    asked = {"rows": np.array([0]), "end": END}
    whole = extracted(learned.model, learned.params, cut, num_tokens=2, **asked)
    beyond = extracted(learned.model, learned.params, cut, num_tokens=4, **asked)
    assert whole.tolist() == [True]
    assert beyond.tolist() == [False]
