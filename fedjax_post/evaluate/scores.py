"""Scores: loss and exact match over a held-out set, as a whole and for each kind of task."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.generation import DecodeFn, greedy_answers, matches, reference_answers
from fedjax_post.evaluate.loss import RowLosses, mean_loss, row_losses
from fedjax_post.evaluate.preferences import reward_margins
from fedjax_post.model.views import LanguageModel

PyTree = Any
Scores = dict[str, Any]


class HeldOut(NamedTuple):
    """What a model is scored on; the same rows every time."""

    table: TokenTable
    rows: np.ndarray  # [n], int64
    decode_fn: DecodeFn
    eos_id: int
    exact_match: bool  # whether answers are generated and compared
    batch_size: int = 32
    loss: bool = True  # whether the model tells how likely a response is
    labels: tuple[str, ...] = ()  # the answers that there are; none: any text
    rejected: TokenTable | None = None  # of pairs: the rows' other responses


def choose_rows(num_rows: int, limit: int = 0, *, seed: int = 0) -> np.ndarray:
    """Returns up to `limit` of the row numbers, spread at random, ascending; 0 is all."""
    if not 0 < limit < num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng((seed, 2)).permutation(num_rows)[:limit])


def score(model: LanguageModel, params: PyTree, heldout: HeldOut) -> Scores:
    """Returns the scores of a model on the held-out rows.

    Returns:
      "loss", nats per response token, where `heldout.loss`; "exact_match", share in
      [0, 1] of rows answered to the letter, or by the right one of `heldout.labels`, where
      `heldout.exact_match`; "preference", share of pairs of which the model prefers the first
      more than the model as it was loaded does, a tie being half, where `heldout.rejected`;
      "per_task", the same for each label of the table, if it has any.
    """
    table, rows = heldout.table, heldout.rows
    losses, shares = None, {}
    if heldout.loss:
        losses = row_losses(model, params, table, rows=rows, batch_size=heldout.batch_size)
    if heldout.exact_match:
        shares["exact_match"] = _answered(model, params, heldout)
    if heldout.rejected is not None:
        margins = reward_margins(
            model,
            params,
            (table, heldout.rejected),
            rows=rows,
            preferred=None if losses is None else losses.nats,
            batch_size=heldout.batch_size,
        )
        shares["preference"] = np.where(margins == 0, 0.5, margins > 0)
    scores = _summary(losses, shares, np.ones(len(rows), bool))
    if table.label is not None:
        labels = table.label[rows]
        scores["per_task"] = {
            str(label): _summary(losses, shares, labels == label) for label in np.unique(labels)
        }
    return scores


def mean_scores(all_scores: list[Scores]) -> Scores:
    """Returns the mean of several models' scores, of each kind of task too."""
    first = all_scores[0]
    return {
        name: mean_scores([scores[name] for scores in all_scores])
        if isinstance(value, dict)
        else float(np.mean([scores[name] for scores in all_scores]))
        for name, value in first.items()
    }


def _answered(model: LanguageModel, params: PyTree, heldout: HeldOut) -> np.ndarray:
    """Whether each row is answered to the letter, bool `[n]`."""
    table, rows, decode_fn, eos_id, _, batch_size, *_ = heldout
    answers = greedy_answers(
        model,
        params,
        table,
        rows=rows,
        decode_fn=decode_fn,
        eos_id=eos_id,
        batch_size=batch_size,
    )
    references = reference_answers(table, rows=rows, decode_fn=decode_fn, eos_id=eos_id)
    return matches(answers, references, labels=heldout.labels)


def _summary(losses: RowLosses | None, shares: dict[str, np.ndarray], chosen: np.ndarray) -> Scores:
    scores = {name: float(flags[chosen].mean()) for name, flags in shares.items()}
    if losses is None:
        return scores
    chosen_losses = RowLosses(losses.nats[chosen], losses.num_tokens[chosen])
    return {"loss": mean_loss(chosen_losses), **scores}
