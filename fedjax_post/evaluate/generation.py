"""Generated answers: greedy continuations of held-out prompts, as text."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_post.data.table import TokenTable, gather
from fedjax_post.evaluate.heldout import HeldOut, answer_length, is_compared
from fedjax_post.evaluate.stacked import apply, in_batches, owner_of, rows_at, shapes_of

PyTree = Any
# (params, prompts [B, L], mask [B, L], prefix=, answer=): what is asked, to be counted
NoteFn = Callable[..., None]


def greedy_answers(
    model: Any, params: PyTree, heldout: HeldOut, *, note_fn: NoteFn | None = None
) -> list[str]:
    """Returns the model's answer to each held-out row's prompt, by greedy decoding.

    An answer may be as long as the longest response that is compared, if the model's context has
    room for it after the longest prompt. Prompts of similar lengths are read together. What all
    prompts begin with is read once for a batch.

    Args:
      model: the frozen model, another object with the method `answer`, or stacked models.
      params: merged over the model.
      heldout: the rows; in a chat, the prompt is everything before the last response.
      note_fn: called before each batch; not with stacked models.
    """
    table, rows, eos_id = heldout.table, heldout.rows, heldout.eos_id
    asked = is_compared(heldout)
    asked[rows] = True
    longest, num_new = int(table.prompt_length[asked].max()), answer_length(heldout)
    like, given = shapes_of(model, params)
    if hasattr(like, "config"):  # a hosted model raises an error itself if this is too long
        num_new = min(num_new, like.config.max_positions - like.prompt_length(given) - longest)
    form: dict[str, Any] = {"max_new_tokens": num_new, "eos_id": eos_id, "pad_id": table.pad_id}
    form["prefix"] = heldout.prefix
    answers, first = [""] * len(rows), len(heldout.prefix)
    owner, sizes = owner_of(model, rows), table.prompt_length[rows] - first
    for places, width in in_batches(model, owner, heldout.batch_size, sizes=sizes):
        prompts, mask = _pad_left(table, rows_at(rows, places), width=width, first=first)
        if note_fn is not None:
            note_fn(params, prompts, mask, prefix=heldout.prefix, answer=num_new)
        tokens = apply(_answer, model, params, jnp.asarray(prompts), jnp.asarray(mask), **form)
        for place, row in zip(places.tolist(), np.asarray(tokens).tolist(), strict=True):
            if place >= 0:
                ids = row[: row.index(eos_id)] if eos_id in row else row
                answers[place] = heldout.decode_fn(ids)
    return answers


def reference_answers(heldout: HeldOut) -> list[str]:
    """Returns the text of each held-out row's last response, decoded like an answer."""
    table, answers = heldout.table, []
    for row in heldout.rows.tolist():
        start, length = int(table.prompt_length[row]), int(table.length[row])
        tokens = gather(table, np.array([row]))[0][0, start:length].tolist()
        answers.append(heldout.decode_fn([token for token in tokens if token != heldout.eos_id]))
    return answers


def matches(
    answers: Sequence[str], references: Sequence[str], *, labels: Sequence[str] = ()
) -> np.ndarray:
    """Returns whether each answer equals its reference, ignoring spaces around them, bool `[n]`.

    Args:
      answers: `[n]` texts.
      references: `[n]` texts.
      labels: the possible answers; empty for any text. With labels, an answer counts as the
        longest label that it begins with, so that a base that never ends a text can be scored.

    Example:
      >>> matches(["cold wet ", "tool and more"], ["cold wet", "tool"]).tolist()
      [True, False]
      >>> matches(["tool and more"], ["tool"], labels=("tool", "food")).tolist()
      [True]
      >>> matches(["1.5", "1."], ["1", "1"], labels=("1", "2")).tolist()
      [False, True]
    """
    read = [_label_of(answer, labels) if labels else answer.strip() for answer in answers]
    pairs = zip(read, references, strict=True)
    return np.array([answer == reference.strip() for answer, reference in pairs], bool)


def is_answerable(heldout: HeldOut) -> np.ndarray:
    """Returns which held-out rows have an answer that a model's can be compared with, bool `[n]`.

    With given labels, a row whose response is none of them has none; see also `is_compared`.
    """
    found = is_compared(heldout)[heldout.rows]
    if heldout.labels:
        known = set(map(str.strip, heldout.labels))
        found &= np.array([text.strip() in known for text in reference_answers(heldout)], bool)
    return found


def _label_of(answer: str, labels: Sequence[str]) -> str | None:
    """Returns the longest label that the answer begins with, as whole words, or None."""
    text, each = answer.strip(), map(str.strip, labels)
    fits = [label for label in each if re.match(rf"{re.escape(label)}(?!\w|[-.,'’]\w)", text)]
    return max(fits, key=len, default=None)


def _answer(model, params, prompts, prompt_mask, *, prefix, **form):
    shared = {"prefix": jnp.asarray(prefix)} if prefix else {}
    return model.answer(params, prompts, prompt_mask, **form, **shared)


def longest_response(table: TokenTable) -> int:
    """Returns the number of tokens of the longest last response, including its end."""
    return int((table.length - table.prompt_length).max())


def _pad_left(
    table: TokenTable, rows: np.ndarray, *, width: int, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts from the place `first` on, padded on the left, and the mask of tokens.

    Args:
      table: tokenised rows.
      rows: row numbers, -1 for padding.
      width: W, tokens of the result, at least those of the longest prompt without its first ones.
      first: F, tokens that are left out at the start of every prompt.

    Returns:
      `[n, W]` int32 and bool.
    """
    tokens, _ = gather(table, rows)
    prompts = np.full((len(rows), width), table.pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, length in enumerate(table.prompt_length[rows].tolist()):
        if rows[i] >= 0:
            place = width - (length - first)
            prompts[i, place:], mask[i, place:] = tokens[i, first:length], True
    return prompts, mask
