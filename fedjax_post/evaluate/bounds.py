"""Ranks the labels of rows by the bounds that a provider's answers put on their log-probabilities.

A provider returns the log-probabilities of the most likely next tokens. They are those of labels
that are one token each. Of a label that is not among them, only the largest value that it can have
is known; see `provider.hosted`.

| log-probabilities that came back | a score of `ranking` |
| --- | --- |
| of all labels | is that of the same model without a provider |
| of some labels | `accuracy` is: no other label is more likely; `accuracy_pmi` may be undecided |
| of none | undecided: the row counts as wrong, and as `accuracy_undecided` |
| after the null prompt not of all labels | `accuracy_pmi` may be undecided in every row |
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.ranking import (
    Questions,
    Ranks,
    among_all,
    padded,
    questions,
    right_labels,
)
from fedjax_post.evaluate.stacked import in_batches

PyTree = Any


def rank_by_bounds(model: Any, params: PyTree, heldout: HeldOut) -> Ranks:
    """Returns by score whether each row's label is surely ranked first; losses are not known.

    Rows are left out as by `ranking.rank`. The scores `accuracy_undecided` and
    `accuracy_pmi_undecided` say in which rows another label may be first as well. Each row is one
    question, and the null prompt one more.

    Args:
      model: with the method `next_bounds` of `provider.hosted.Hosted`.
      params: of the model.
      heldout: the rows, and their possible answers, of one token each.

    Raises:
      ValueError: if a label has several tokens.
    """
    right, choices = right_labels(heldout), heldout.choices
    assert choices is not None  # guaranteed by the caller
    if (longest := choices.tokens.shape[1]) > 1:
        raise ValueError(
            f"choices have up to {longest} tokens, and only next tokens have bounds; compare "
            "answers in place of ranks"
        )
    ranked, per_row = np.flatnonzero(right >= 0), np.full(len(right), np.nan)
    if not len(ranked):
        return Ranks({}, per_row)
    asked = questions(heldout, ranked)
    least, largest = _bounds(model, params, heldout, asked)
    readings = {
        "accuracy": (least[:-1], largest[:-1]),
        "accuracy_pmi": (least[:-1] - largest[-1], largest[:-1] - least[-1]),
    }
    shares = {}
    for name, between in readings.items():
        first = _surely_first(*between)
        shares[name] = among_all(first == right[ranked], right)
        shares[f"{name}_undecided"] = among_all(first < 0, right)
    return Ranks(shares | {"accuracy_per_token": shares["accuracy"]}, per_row)


def _bounds(
    model: Any, params: PyTree, heldout: HeldOut, asked: Questions
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the largest log-probability of each label, float64 `[m + 1, A]` each.

    Those after the null prompt are the last ones.
    """
    assert heldout.choices is not None
    prompts = [*asked.prompts, asked.null_prompt]
    candidates = jnp.asarray(heldout.choices.tokens[:, 0])
    shared = {"prefix": jnp.asarray(asked.prefix)} if asked.prefix else {}
    least, largest = np.zeros((2, len(prompts), len(candidates)))
    sizes = np.array([len(prompt) for prompt in prompts])
    owner = np.zeros(len(prompts), np.int64)
    for places, width in in_batches(model, owner, heldout.batch_size, sizes=sizes):
        part = places[places >= 0]
        tokens, mask = padded([prompts[i] for i in part.tolist()], width=width)
        given = jnp.asarray(tokens), jnp.asarray(mask, bool), candidates
        least[part], largest[part] = model.next_bounds(params, *given, **shared)
    return least, largest


def _surely_first(least: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Returns the label of each row that no other can exceed, int64 `[m]`; -1 if there is none."""
    first = least.argmax(axis=1)
    place = np.arange(len(first)), first
    others = largest.copy()
    others[place] = -np.inf
    is_sure = np.isfinite(least[place]) & (least[place] >= others.max(axis=1))
    return np.where(is_sure, first, -1)
