"""Scores: loss, exact match and ranks over a held-out set, in total and for each task."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_post.evaluate.bounds import rank_by_bounds
from fedjax_post.evaluate.generation import (
    NoteFn,
    greedy_answers,
    is_answerable,
    matches,
    reference_answers,
)
from fedjax_post.evaluate.heldout import HeldOut, is_ranked
from fedjax_post.evaluate.loss import RowLosses, mean_loss, row_losses
from fedjax_post.evaluate.preferences import reward_margins
from fedjax_post.evaluate.ranking import rank, right_labels
from fedjax_post.model.views import LanguageModel

PyTree = Any
Scores = dict[str, Any]


class Outcomes(NamedTuple):
    """What a model made of each row, from which scores of any of the rows can be computed."""

    losses: RowLosses | None
    shares: dict[str, np.ndarray]  # name of a score -> [n], in [0, 1]; NaN if it leaves a row out


def score(model: LanguageModel, params: PyTree, heldout: HeldOut) -> Scores:
    """Returns the scores of a model on the held-out rows.

    Args:
      model: the frozen model.
      params: merged over the model.
      heldout: the rows and settings.

    Returns:
      "loss", nats per response token, if `heldout.loss`. "exact_match", if
      `heldout.exact_match`: the share in [0, 1] of rows whose answer equals the response, or is
      the right one of `heldout.labels`. "accuracy", "accuracy_per_token" and "accuracy_pmi", if
      `is_ranked(heldout)`: the share of rows whose label is ranked first, see `ranking`, and of a
      hosted model `bounds`.
      "preference", if `heldout.rejected`: the share of pairs whose margin in favour of the
      preferred response is larger than with the model as it was loaded, a tie counting one half.
      "per_task", if the table has labels: the same scores for each label. Rows that `left_out`
      counts are left out of a share; a share of no row is left out of the result.

    Example:
      >>> from fedjax_post.data.table import TokenTable
      >>> from fedjax_post.testing.models import tiny_model
      >>> tokens = np.array([3, 4, ~5, ~1, 3, ~6, ~1], np.int32)  # two rows, responses as ~token
      >>> ints = lambda *numbers: np.array(numbers, np.int32)
      >>> places = {"chunk": ints(0, 0), "start": ints(0, 4), "length": ints(4, 3)}
      >>> table = TokenTable(
      ...     (tokens,), **places, prompt_length=ints(2, 1), max_length=4, pad_id=0
      ... )
      >>> heldout = HeldOut(table, np.arange(2), str, eos_id=1, exact_match=False)
      >>> list(score(tiny_model(), {}, heldout))
      ['loss']
    """
    return scores_of(measure(model, params, heldout), heldout)


def scores_of(outcomes: Outcomes, heldout: HeldOut) -> Scores:
    """Returns the scores of a model from the outcomes of all held-out rows; see `score`."""
    scores = summarize(outcomes, np.arange(len(heldout.rows)))
    if heldout.table.label is not None:
        labels = heldout.table.label[heldout.rows]
        scores["per_task"] = {
            str(label): summarize(outcomes, np.flatnonzero(labels == label))
            for label in np.unique(labels)
        }
    return scores


def measure(
    model: Any, params: PyTree, heldout: HeldOut, *, note_fn: NoteFn | None = None
) -> Outcomes:
    """Returns the outcome of each held-out row; see `score` for the scores.

    Args:
      model: the frozen model, stacked models, or a hosted model.
      params: merged over the model.
      heldout: the rows and settings.
      note_fn: as for `greedy_answers` and `rank`. Losses, which no host computes, are not noted.
    """
    table, rows = heldout.table, heldout.rows
    losses, shares, known = None, {}, None
    if heldout.exact_match:
        shares["exact_match"] = _is_answered(model, params, heldout, note_fn)
    if is_ranked(heldout):
        if hasattr(model, "next_bounds"):  # a hosted model, which counts its calls itself
            ranks = rank_by_bounds(model, params, heldout)
        else:
            ranks = rank(model, params, heldout, note_fn=note_fn)
        shares, known = shares | ranks.shares, ranks.nats
    if heldout.loss:
        size = heldout.batch_size
        losses = row_losses(model, params, table, rows=rows, batch_size=size, known=known)
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
    return Outcomes(losses, shares)


def summarize(outcomes: Outcomes, places: np.ndarray) -> Scores:
    """Returns the scores of some of the rows; a score that leaves all of them out is left out.

    Args:
      outcomes: of `measure`.
      places: `[m]` int, of rows in the outcomes.
    """
    if not len(places):
        return {}
    losses, shares = select(outcomes, places)
    counted = {name: flags[~np.isnan(flags)] for name, flags in shares.items()}
    scores = {name: float(flags.mean()) for name, flags in counted.items() if len(flags)}
    return scores if losses is None else {"loss": mean_loss(losses), **scores}


def counted_by(outcomes: Outcomes, places: np.ndarray) -> dict[str, int]:
    """Returns how many of some rows each score counts, see `summarize`."""
    counts = {
        name: int((~np.isnan(flags[places])).sum()) for name, flags in outcomes.shares.items()
    }
    return counts if outcomes.losses is None else {"loss": len(places), **counts}


def select(outcomes: Outcomes, places: np.ndarray) -> Outcomes:
    """Returns the outcomes of some of the rows; see `summarize`."""
    losses, shares = outcomes
    if losses is not None:
        losses = RowLosses(losses.nats[places], losses.num_tokens[places])
    return Outcomes(losses, {name: flags[places] for name, flags in shares.items()})


def left_out(heldout: HeldOut) -> dict[str, int]:
    """Returns how many held-out rows a score leaves out, for scores that leave out any.

    The rows are those that cannot be compared or ranked; see `is_answerable` and `right_labels`.
    """
    counts = {}
    if heldout.exact_match:
        counts["exact_match"] = int((~is_answerable(heldout)).sum())
    if is_ranked(heldout):
        counts["accuracy"] = int((right_labels(heldout) < 0).sum())
    return {name: count for name, count in counts.items() if count}


def mean_scores(all_scores: list[Scores]) -> Scores:
    """Returns the mean of several models' scores, for each task too.

    A score is averaged over the models that have it.
    """
    values: dict[str, list] = {}
    for scores in all_scores:
        for name, value in scores.items():
            values.setdefault(name, []).append(value)
    return {
        name: mean_scores(found) if isinstance(found[0], dict) else float(np.mean(found))
        for name, found in values.items()
    }


def _is_answered(model: Any, params: PyTree, heldout: HeldOut, note_fn) -> np.ndarray:
    """Returns whether each row is answered exactly, float64 `[n]`; NaN if it is not compared."""
    compared = is_answerable(heldout)
    asked = heldout._replace(rows=heldout.rows[compared])
    answers = greedy_answers(model, params, asked, note_fn=note_fn)
    found = np.full(len(compared), np.nan)
    found[compared] = matches(answers, reference_answers(asked), labels=heldout.labels)
    return found
