"""Generated answers: greedy continuations of held-out prompts, as text."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_post.data.table import TokenTable, gather
from fedjax_post.evaluate.choices import DecodeFn
from fedjax_post.evaluate.stacked import apply, in_batches, owner_of, rows_at, shapes_of

PyTree = Any


def greedy_answers(
    model: Any,
    params: PyTree,
    table: TokenTable,
    *,
    rows: np.ndarray,
    decode_fn: DecodeFn,
    eos_id: int,
    longest: int | None = None,
    batch_size: int = 32,
) -> list[str]:
    """Returns the model's answer to each row's prompt, by greedy decoding.

    One shape is compiled for each table, whatever the number of rows: the last batch is padded.

    Args:
      model: the frozen model, another object with the method `answer`, or stacked models.
      params: merged over the model.
      table: tokenised rows; in a chat, the prompt is everything before the last response.
      rows: `[n]` int, row numbers.
      decode_fn: token ids without the end token -> text.
      eos_id: the token that ends an answer.
      longest: tokens of an answer, for rows whose prompts leave room for it in the model's context;
        None for the table's longest response, or what the longest prompt leaves room for.
      batch_size: prompts decoded side by side.
    """
    width = int(table.prompt_length.max())
    num_new = longest or longest_response(table)
    like, given = shapes_of(model, params)
    if hasattr(like, "config"):  # a hosted model raises an error itself if this is too long
        room = like.config.max_positions - like.prompt_length(given)
        if longest is None:
            num_new = min(num_new, room - width)
        width = min(width, room - num_new)
    form = {"max_new_tokens": num_new, "eos_id": eos_id, "pad_id": table.pad_id}
    answers = [""] * len(rows)
    for places in in_batches(model, owner_of(model, rows), batch_size):
        prompts, mask = map(jnp.asarray, _pad_left(table, rows_at(rows, places), width=width))
        tokens = np.asarray(apply(_answer, model, params, prompts, mask, **form))
        for place, row in zip(places.tolist(), tokens.tolist(), strict=True):
            if place >= 0:
                answers[place] = decode_fn(row[: row.index(eos_id)] if eos_id in row else row)
    return answers


def reference_answers(
    table: TokenTable, *, rows: np.ndarray, decode_fn: DecodeFn, eos_id: int
) -> list[str]:
    """Returns the text of each row's last response, decoded like an answer.

    Args:
      table: tokenised rows.
      rows: `[n]` int, row numbers.
      decode_fn: token ids without the end token -> text.
      eos_id: the token that ends a response.
    """
    answers = []
    for row in rows.tolist():
        start, length = int(table.prompt_length[row]), int(table.length[row])
        tokens = gather(table, np.array([row]))[0][0, start:length].tolist()
        answers.append(decode_fn([token for token in tokens if token != eos_id]))
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
    """
    read = [_label_of(answer, labels) if labels else answer.strip() for answer in answers]
    pairs = zip(read, references, strict=True)
    return np.array([answer == reference.strip() for answer, reference in pairs], bool)


def _label_of(answer: str, labels: Sequence[str]) -> str | None:
    """Returns the longest label that the answer begins with, as whole words, or None."""
    text = answer.strip()
    fits = [label for label in labels if re.match(rf"{re.escape(label)}(?!\w)", text)]
    return max(fits, key=len, default=None)


def _answer(model, params, prompts, prompt_mask, **form):
    return model.answer(params, prompts, prompt_mask, **form)


def longest_response(table: TokenTable) -> int:
    """Returns the number of tokens of the longest last response, including its end."""
    return int((table.length - table.prompt_length).max())


def _pad_left(table: TokenTable, rows: np.ndarray, *, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts `[n, width]` that end at the right edge, and the mask of tokens."""
    tokens, _ = gather(table, rows)
    prompts = np.full((len(rows), width), table.pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, length in enumerate(table.prompt_length[rows].tolist()):
        if rows[i] >= 0:
            prompts[i, width - length :] = tokens[i, :length]
            mask[i, width - length :] = True
    return prompts, mask
