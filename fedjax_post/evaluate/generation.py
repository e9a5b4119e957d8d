"""Generated answers: greedy continuations of held-out prompts, as text."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_post.data.table import TokenTable, gather
from fedjax_post.evaluate.choices import DecodeFn

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
      model: the frozen model, or another object with the method `answer`.
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
    if hasattr(model, "config"):  # a hosted model raises an error itself if this is too long
        room = model.config.max_positions - model.prompt_length(params)
        if longest is None:
            num_new = min(num_new, room - width)
        width = min(width, room - num_new)
    answers = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        prompts, mask = _pad_left(table, part, width=width, num_rows=batch_size)
        tokens = model.answer(
            params,
            jnp.asarray(prompts),
            jnp.asarray(mask),
            max_new_tokens=num_new,
            eos_id=eos_id,
            pad_id=table.pad_id,
        )
        for row in np.asarray(tokens)[: len(part)].tolist():
            answers.append(decode_fn(row[: row.index(eos_id)] if eos_id in row else row))
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


def longest_response(table: TokenTable) -> int:
    """Returns the number of tokens of the longest last response, including its end."""
    return int((table.length - table.prompt_length).max())


def _pad_left(
    table: TokenTable, rows: np.ndarray, *, width: int, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts `[num_rows, width]` that end at the right edge, and the mask of tokens."""
    tokens, _ = gather(table, rows)
    prompts = np.full((num_rows, width), table.pad_id, np.int32)
    mask = np.zeros((num_rows, width), bool)
    for i, length in enumerate(table.prompt_length[rows].tolist()):
        prompts[i, width - length :] = tokens[i, :length]
        mask[i, width - length :] = True
    return prompts, mask
