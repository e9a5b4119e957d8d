"""Scores: loss and exact match over a held-out set, in total and for each task."""

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
    """The held-out rows and settings with which every model is scored."""

    table: TokenTable
    rows: np.ndarray  # [n], int64, row numbers
    decode_fn: DecodeFn  # token ids without the end token -> text
    eos_id: int  # the token that ends an answer
    exact_match: bool  # whether answers are generated and compared
    batch_size: int = 32  # rows in one compiled call
    loss: bool = True  # whether the model gives the likelihood of a response
    labels: tuple[str, ...] = ()  # the possible answers; empty for any text
    rejected: TokenTable | None = None  # for preference pairs: the rows with rejected responses


def choose_rows(num_rows: int, limit: int = 0, *, seed: int = 0) -> np.ndarray:
    """Returns up to `limit` row numbers, chosen at random, in ascending order.

    Args:
      num_rows: number of rows to choose from.
      limit: largest number of rows to choose; 0 for all.
      seed: equal seeds choose equal rows.

    Example:
      >>> choose_rows(4).tolist(), len(choose_rows(1000, 10))
      ([0, 1, 2, 3], 10)
    """
    if not 0 < limit < num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng((seed, 2)).permutation(num_rows)[:limit])


def score(model: LanguageModel, params: PyTree, heldout: HeldOut) -> Scores:
    """Returns the scores of a model on the held-out rows.

    Args:
      model: the frozen model.
      params: merged over the model.
      heldout: the rows and settings.

    Returns:
      "loss", nats per response token, if `heldout.loss`. "exact_match", if
      `heldout.exact_match`: the share in [0, 1] of rows whose answer equals the response, or is
      the right one of `heldout.labels`. "preference", if `heldout.rejected`: the share of pairs
      whose margin in favour of the preferred response is larger than with the model as it was
      loaded, a tie counting one half. "per_task", if the table has labels: the same scores for
      each label.

    Example:
      >>> from fedjax_post.testing.models import tiny_model
      >>> tokens = np.array([3, 4, ~5, ~1, 3, ~6, ~1], np.int32)  # two rows, responses as ~token
      >>> ints = lambda *numbers: np.array(numbers, np.int32)
      >>> places = {"chunk": ints(0, 0), "start": ints(0, 4), "length": ints(4, 3)}
      >>> table = TokenTable(
      ...     (tokens,), **places, prompt_length=ints(2, 1), max_length=4, pad_id=0
      ... )
      >>> heldout = HeldOut(table, choose_rows(2), str, eos_id=1, exact_match=False)
      >>> list(score(tiny_model(), {}, heldout))
      ['loss']
    """
    table, rows = heldout.table, heldout.rows
    losses, shares = None, {}
    if heldout.loss:
        losses = row_losses(model, params, table, rows=rows, batch_size=heldout.batch_size)
    if heldout.exact_match:
        shares["exact_match"] = _is_answered(model, params, heldout)
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
    """Returns the mean of several models' scores, for each task too."""
    first = all_scores[0]
    return {
        name: mean_scores([scores[name] for scores in all_scores])
        if isinstance(value, dict)
        else float(np.mean([scores[name] for scores in all_scores]))
        for name, value in first.items()
    }


def _is_answered(model: LanguageModel, params: PyTree, heldout: HeldOut) -> np.ndarray:
    """Returns whether each row is answered exactly, bool `[n]`."""
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
