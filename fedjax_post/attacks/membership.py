"""Membership: was a row trained on? Scores from log-probabilities, and what they are worth.

    found = token_scores(model, params, table, rows=rows)
    auc(min_k(found)[:n], min_k(found)[n:])

The adversary has the trained model, or an API that gives log-probabilities, and a row. Of every
score, a higher one speaks for membership; mimir (Duan et al. 2024, arXiv:2402.07841), with which
they agree up to the sign, has it the other way round.

| score | of one row with tokens x | source |
| --- | --- | --- |
| loss | mean log p(x_t) | Yeom et al. 2018, arXiv:1709.01604 |
| reference | the same, less that of a model that has not seen the row | Carlini et al. 2021 |
| zlib | the mean over the bytes of the compressed text | Carlini et al. 2021, arXiv:2012.07805 |
| min_k | the mean of the least k of log p(x_t) | Shi et al. 2024, arXiv:2310.16789 |
| min_k_plus_plus | the same of (log p(x_t) - mean) / deviation | Zhang et al. 2024, 2404.02936 |

Mean and deviation are those of log p over the vocabulary, under p.

Only response tokens count, since nothing else was learned. One deviation: where k of the tokens
is less than one, one token is taken; mimir's mean of no token is NaN.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.data.table import TokenTable, gather
from fedjax_post.model.views import LanguageModel

PyTree = Any
_LEAST = 1e-12  # variance of log p below which a token has one possible successor


class TokenScores(NamedTuple):
    """What a model says of the tokens of rows, float64 `[n, L]`, nats; L tokens a row."""

    log_prob: np.ndarray  # of the token, given those before it
    mean: np.ndarray  # of log p over the vocabulary, under p: the negative entropy
    variance: np.ndarray  # of log p over the vocabulary, under p
    counts: np.ndarray  # bool: response tokens, at least one a row


class Worth(NamedTuple):
    """What a score tells about membership."""

    auc: float  # probability that a member scores higher than another row; 0.5: nothing
    tpr: dict[float, float]  # share of false positives -> share of members that are found


def token_scores(
    model: LanguageModel,
    params: PyTree,
    table: TokenTable,
    *,
    rows: np.ndarray,
    batch_size: int = 32,
) -> TokenScores:
    """Returns what a model says of the response tokens of rows.

    Args:
      model: the frozen model; it must give logits.
      params: merged over the model.
      table: tokenised rows.
      rows: `[n]` int, row numbers.
      batch_size: rows in one compiled call, whose logits are in memory at once.
    """
    found = []
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        tokens, mask = gather(table, part, num_rows=min(batch_size, len(rows)))
        scores = [np.asarray(x, np.float64) for x in _scores(model, params, tokens)]
        found.append([x[: len(part)] for x in (*scores, mask)])
    return TokenScores(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def loss(found: TokenScores) -> np.ndarray:
    """Returns the mean log-probability of each row's response, `[n]`, nats."""
    counts = found.counts
    return np.where(counts, found.log_prob, 0).sum(axis=1) / counts.sum(axis=1)


def reference(found: TokenScores, other: TokenScores) -> np.ndarray:
    """Returns how much better than another model this one predicts each row, `[n]`, nats.

    Args:
      found: of the model that is attacked.
      other: of a model that has not seen the rows, such as the base before training.
    """
    return loss(found) - loss(other)


def by_zlib(found: TokenScores, texts: Sequence[str]) -> np.ndarray:
    """Returns the mean log-probability over the size of the compressed text, `[n]`, nats a byte.

    Args:
      found: of the model that is attacked.
      texts: of the rows' responses, `[n]`.
    """
    return loss(found) / np.array([len(zlib.compress(text.encode())) for text in texts])


def min_k(found: TokenScores, share: float = 0.2) -> np.ndarray:
    """Returns the mean of the least of a row's log-probabilities, `[n]`, nats.

    Args:
      found: of the model that is attacked.
      share: of a row's tokens that are taken, in (0, 1], rounded down, at least one.

    Raises:
      ValueError: if `share` is out of range.
    """
    return _mean_of_least(found.log_prob, found.counts, share)


def min_k_plus_plus(found: TokenScores, share: float = 0.2) -> np.ndarray:
    """Returns the mean of the least of a row's standardised log-probabilities, `[n]`.

    Args:
      found: of the model that is attacked.
      share: as for `min_k`.

    Raises:
      ValueError: if `share` is out of range.
    """
    deviation = np.sqrt(np.maximum(found.variance, _LEAST))
    return _mean_of_least((found.log_prob - found.mean) / deviation, found.counts, share)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Returns the probability that a member scores higher than another row, a tie counting half.

    >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875

    Args:
      members: `[m]` scores.
      others: `[n]` scores.
    """
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
    return float(below.mean() / (2 * len(others)))


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
    """Returns the largest share of members above a threshold with at most some false positives.

    Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
    arXiv:2112.03570: what an attack finds where it hardly ever errs.

    Args:
      members: `[m]` scores.
      others: `[n]` scores.
      fpr: share of the other rows that may be above the threshold, in [0, 1).
    """
    allowed = int(np.floor(fpr * len(others) * (1 + 1e-12)))
    threshold = np.sort(others)[::-1][allowed] if allowed < len(others) else -np.inf
    return float((members > threshold).mean())


def worth(
    members: np.ndarray, others: np.ndarray, *, rates: Sequence[float] = (0.001, 0.01)
) -> Worth:
    """Returns what a score tells about membership.

    Args:
      members: `[m]` scores of rows that were trained on.
      others: `[n]` scores of rows that were not.
      rates: shares of false positives for `Worth.tpr`.
    """
    return Worth(auc(members, others), {x: tpr_at_fpr(members, others, x) for x in rates})


def all_scores(
    found: TokenScores, other: TokenScores | None = None, texts: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Returns every score of this module by name, those without their input left out.

    Args:
      found: of the model that is attacked.
      other: as for `reference`.
      texts: as for `by_zlib`.
    """
    scores = {
        "loss": loss(found),
        "min_k": min_k(found),
        "min_k_plus_plus": min_k_plus_plus(found),
    }
    if other is not None:
        scores["reference"] = reference(found, other)
    if texts is not None:
        scores["zlib"] = by_zlib(found, texts)
    return scores


@jax.jit
def _scores(model, params, tokens):
    """Returns log p of each token, and the mean and variance of log p before it, `[n, L]`."""
    logits = model.logits(params, jnp.asarray(tokens)).astype(jnp.float32)[:, :-1]
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    own = jnp.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]
    mean = (p * log_p).sum(-1)
    variance = (p * (log_p - mean[..., None]) ** 2).sum(-1)
    # the first token has nothing before it, and its mask is False
    return [jnp.pad(x, ((0, 0), (1, 0))) for x in (own, mean, variance)]


def _mean_of_least(values: np.ndarray, counts: np.ndarray, share: float) -> np.ndarray:
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}; 0.2 is usual")
    number = np.maximum(1, np.floor(counts.sum(axis=1) * share).astype(np.int64))
    ordered = np.sort(np.where(counts, values, np.inf), axis=1)
    taken = np.arange(values.shape[1])[None] < number[:, None]
    return np.where(taken, ordered, 0).sum(axis=1) / number
