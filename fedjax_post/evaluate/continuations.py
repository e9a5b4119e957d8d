"""Log-probabilities of given continuations, and greedy ones, of prompts of many lengths.

Rows are sorted by length and padded to widths of 16, 24, 32, 48, 64, ... tokens. Each width in
use is compiled once, with as many rows as fit in one batch.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fedjax_post.evaluate.widths import padded_width
from fedjax_post.model.views import LanguageModel

PyTree = Any

# Tokens of one batch when scoring, and slots of one cache when generating
BATCH, SLOTS = 2**11, 2**13
BATCH_ACCELERATOR, SLOTS_ACCELERATOR = 2**15, 2**17
PIECE = 16  # tokens that are generated between two looks at what has been generated


class Continuation(NamedTuple):
    """Tokens, and those before them, which are at least one."""

    context: Sequence[int]
    tokens: Sequence[int]


class Scored(NamedTuple):
    """How a model predicts a continuation."""

    log_prob: float  # of the whole continuation, nats
    is_greedy: bool  # no other token is more likely at any place


def score_continuations(
    model: LanguageModel, params: PyTree, asked: Sequence[Continuation]
) -> list[Scored]:
    """Returns the log-probability of each continuation after its context.

    Args:
      model: the frozen model.
      params: merged over the model.
      asked: each at most one token longer than the model's context.
    """
    found: dict[int, Scored] = {}
    lengths = [len(context) + len(tokens) - 1 for context, tokens in asked]
    most = model.config.max_positions - model.prompt_length(params)
    size = BATCH if jax.default_backend() == "cpu" else BATCH_ACCELERATOR
    for part, width, num_rows in _batches(lengths, most=most, size=size, about="scored"):
        read, targets, mask = np.zeros((3, num_rows, width), np.int32)
        for row, number in enumerate(part):
            context, continuation = asked[number]
            whole = [*context, *continuation]
            read[row, : lengths[number]] = whole[:-1]
            targets[row, : lengths[number]] = whole[1:]
            mask[row, len(context) - 1 : lengths[number]] = 1
        nats, num_correct = map(np.asarray, _score(model, params, read, targets, mask > 0))
        for row, number in enumerate(part):
            is_greedy = int(num_correct[row]) == len(asked[number].tokens)
            found[number] = Scored(-float(nats[row]), is_greedy)
    return [found[number] for number in range(len(asked))]


@jax.jit
def _score(model, params, read, targets, mask):
    def score_row(tokens, targets, marks):
        loss = model.total_loss(params, tokens[None], marks[None], targets=targets[None])
        return loss.nats, loss.num_correct

    return jax.vmap(score_row)(read, targets, mask)


def continue_greedily(
    model: LanguageModel,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    is_done: Callable[[Sequence[int]], bool],
    pad_id: int,
) -> list[list[int]]:
    """Returns the most likely tokens after each prompt, up to at most `max_new_tokens`.

    A batch ends when all its rows are done, so that a row may go on after it is done.

    Args:
      model: the frozen model.
      params: merged over the model.
      prompts: at least one token each; with `max_new_tokens` they fit in the model's context.
      max_new_tokens: of each row, at least 1.
      is_done: whether the tokens of a row so far need none after them.
      pad_id: fills the rows on their left.
    """
    found: dict[int, list[int]] = {}
    num_pieces = -(-max_new_tokens // PIECE)
    most = model.config.max_positions - model.prompt_length(params) - max_new_tokens
    slots = SLOTS if jax.default_backend() == "cpu" else SLOTS_ACCELERATOR
    lengths = [len(prompt) for prompt in prompts]
    extra = num_pieces * PIECE
    for part, width, num_rows in _batches(
        lengths, most=most, size=slots, extra=extra, about="generated"
    ):
        tokens = np.full((num_rows, width), pad_id, np.int32)
        mask = np.zeros((num_rows, width), bool)
        for row, number in enumerate(part):
            tokens[row, width - lengths[number] :] = prompts[number]
            mask[row, width - lengths[number] :] = True
        mask[len(part) :, -1] = True  # a row without a prompt has one token
        place = mask.sum(1, dtype=np.int32)
        logits, cache = _read(model, params, tokens, mask, num_slots=width + extra)
        rows = np.zeros((num_rows, 0), np.int32)
        for _ in range(num_pieces):
            piece, logits, cache, place = _extend(model, params, logits, cache, place)
            rows = np.concatenate([rows, np.asarray(piece)], axis=1)
            if all(is_done(row) for row in rows[: len(part), :max_new_tokens].tolist()):
                break
        for row, number in enumerate(part):
            found[number] = rows[row, :max_new_tokens].tolist()
    return [found[number] for number in range(len(prompts))]


@functools.partial(jax.jit, static_argnames=("num_slots",))
def _read(model, params, tokens, mask, *, num_slots):
    return model.prefill(params, tokens, mask=mask, num_slots=num_slots)


@functools.partial(jax.jit, donate_argnames=("cache",))
def _extend(model, params, logits, cache, place):
    def step(carry, _):
        logits, cache, place = carry
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)[:, None]
        logits, cache = model.step(
            params, token, positions=place[:, None], mask=token >= 0, cache=cache
        )
        return (logits, cache, place + 1), token[:, 0]

    (logits, cache, place), tokens = jax.lax.scan(step, (logits, cache, place), length=PIECE)
    return tokens.T, logits, cache, place


def _batches(
    lengths: Sequence[int], *, most: int, size: int, about: str, extra: int = 0
) -> Iterator[tuple[list[int], int, int]]:
    """Yields numbers of rows, their width and the rows of the compiled batch, longest first.

    Args:
      lengths: of all rows, at most `most`.
      most: the widest batch.
      size: places of a batch, its width plus `extra` times its rows.
      about: what is done with the rows, for the bar of progress.
      extra: further places of every row.
    """
    by_width: dict[int, list[int]] = {}
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        by_width.setdefault(min(padded_width(lengths[number]), most), []).append(number)
    with tqdm(total=len(lengths), desc=about, unit="row", leave=False, disable=None) as bar:
        for width, numbers in by_width.items():
            num_batches = -(-len(numbers) // max(1, size // (width + extra)))
            num_rows = -(-len(numbers) // num_batches)  # few rows of the last batch are empty
            for start in range(0, len(numbers), num_rows):
                part = numbers[start : start + num_rows]
                yield part, width, num_rows
                bar.update(len(part))
