"""Objectives for closed models, which give only answers or a few log-probabilities.

A row of `{"tokens", "loss_mask"}`, as in `objectives/sft.py`, is one question (everything before
its first response token) and its right answer. A row without response tokens is padding: it has
no question, is not counted, and is not sent to a hosted model.

| metric | meaning |
| --- | --- |
| loss, accuracy | means over the questions |
| queries | number of questions asked |
| tokens_sent | tokens of these questions, without padding; a prompt in `params` is not counted |

Nothing here is differentiated, and only `answer` or `next_scores` of the model is used.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fedjax_post.objectives.tokens import masked_mean

PyTree = Any
NOTHING = -1  # fills places without a token


class Questions(NamedTuple):
    """The questions of a batch: its rows up to their responses; W is L - 1."""

    prompts: Int[Array, "B W"]  # padded on the left with 0
    prompt_mask: Bool[Array, "B W"]  # False for padding, and everywhere in a row without question


def choice_loss(
    candidates: Int[Array, " A"] | Sequence[int],
    *,
    among_all: bool = False,
    prefix: Sequence[int] = (),
) -> Callable:
    """Returns the loss of choosing the first response token among candidates; needs LOGITS.

    It is the mean over questions of -log softmax over the candidates' log-probabilities at the
    right one, and infinite where the right token is not a candidate. Only the candidates compete,
    not all tokens of the vocabulary, as in BBT (Sun et al., ICML 2022, arXiv:2201.03514):
    the trained prompt must then be used with a choice among the candidates too. With
    `among_all`, every token of the vocabulary competes, so that the answer is learned as text.

    Args:
      candidates: int32, A distinct tokens, at least 2: the first token of every label.
      among_all: whether the loss is the negative log-probability of the right token itself.
      prefix: tokens with which every question begins and after which it goes on; the model reads
        them once for a batch, and they stay as they are where tokens of the batch are replaced.

    Returns:
      `(params, model, batch, key) -> (loss, metrics)`.

    Raises:
      ValueError: if there are fewer than 2 candidates, or one occurs twice.
    """
    if not isinstance(candidates, jax.core.Tracer):
        listed = np.asarray(candidates).reshape(-1).tolist()
        if len(listed) < 2 or len(set(listed)) < len(listed):
            raise ValueError(
                f"`labels` must begin with different tokens, at least 2, got {listed}; "
                "rename a label"
            )
    candidates = jnp.asarray(candidates, jnp.int32)

    def loss_fn(params, model, batch, key):
        del key
        asked = questions(batch, num_shared=len(prefix))
        scores = model.next_scores(params, *asked, candidates, **shared(prefix))
        right = responses(batch)[:, :1] == candidates[None]
        best = jnp.where(right, scores, -jnp.inf).max(axis=1)
        losses = (0.0 if among_all else jax.nn.logsumexp(scores, axis=1)) - best
        return _account(asked, losses, best >= scores.max(axis=1), num_shared=len(prefix))

    return loss_fn


def answer_loss(
    *,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    max_new_tokens: int,
    begins: bool = False,
    prefix: Sequence[int] = (),
) -> Callable:
    """Returns the share of questions that the model answers wrongly, as a loss; needs TEXT.

    An answer is right if its tokens up to the first end token are those of the response. This
    equals the exact match of evaluation if each text is spelled by one sequence of tokens.

    Args:
      eos_id: end token or tokens.
      pad_id: the token that fills an answer after its end.
      max_new_tokens: longest answer, including its end, at least 1.
      begins: whether an answer need only begin with the response, as evaluation has it for labels:
        few base models end an answer after one word.
      prefix: as for `choice_loss`.

    Returns:
      `(params, model, batch, key) -> (loss, metrics)`.
    """
    limits = {"max_new_tokens": max_new_tokens, "eos_id": eos_id, "pad_id": pad_id}

    def loss_fn(params, model, batch, key):
        del key
        asked = questions(batch, num_shared=len(prefix))
        answers = model.answer(params, *asked, **limits, **shared(prefix))
        answers = cut_at_end(answers, eos_id)
        wanted = cut_at_end(responses(batch), eos_id)
        width = max(answers.shape[1], wanted.shape[1])
        widen = lambda rows: jnp.pad(
            rows, ((0, 0), (0, width - rows.shape[1])), constant_values=NOTHING
        )
        equal = widen(answers) == widen(wanted)
        right = (equal | (widen(wanted) == NOTHING) if begins else equal).all(axis=1)
        return _account(asked, 1.0 - right, right, num_shared=len(prefix))

    return loss_fn


def questions(batch: dict[str, Array], *, num_shared: int = 0) -> Questions:
    """Returns everything before the first response token of each row, padded on the left.

    A response at the very start of a row answers no question; such a row counts as padding.

    Args:
      batch: "tokens" and "loss_mask", `[B, L]`.
      num_shared: tokens at the start of each row that are left out, fewer than a question has.

    Raises:
      ValueError: if the batch holds packed rows.
    """
    tokens, start = batch["tokens"], _starts(batch)
    width = tokens.shape[1] - 1 - num_shared
    place = jnp.arange(width, dtype=jnp.int32)[None] - (width - start[:, None])
    mask = place >= num_shared
    shifted = jnp.take_along_axis(tokens, jnp.maximum(place, 0), axis=1)
    return Questions(jnp.where(mask, shifted, 0), mask)


def _starts(batch: dict[str, Array]) -> Int[Array, " B"]:
    """Returns the place of each row's first response token; 0 for a row without a question."""
    if "segments" in batch:
        raise ValueError(
            "a row is one question, and these rows are packed (they have segments); "
            "set pack_length=0"
        )
    # argmax also returns 0 if the mask is False everywhere
    return jnp.argmax(batch["loss_mask"].astype(bool), axis=1).astype(jnp.int32)


def responses(batch: dict[str, Array]) -> Int[Array, "B L"]:
    """Returns each row's first run of response tokens, moved to place 0, then `NOTHING`."""
    tokens, mask, start = batch["tokens"], batch["loss_mask"].astype(bool), _starts(batch)
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] + start[:, None]
    inside = jnp.minimum(place, tokens.shape[1] - 1)
    is_run = (place == inside) & jnp.take_along_axis(mask, inside, axis=1)
    is_run = jnp.cumprod(is_run.astype(jnp.int32), axis=1) > 0
    return jnp.where(is_run, jnp.take_along_axis(tokens, inside, axis=1), NOTHING)


def cut_at_end(rows: Int[Array, "B T"], eos_id: int | tuple[int, ...]) -> Int[Array, "B T"]:
    """Returns the rows with `NOTHING` from their first end token on."""
    ends = jnp.array((eos_id,) if isinstance(eos_id, int) else eos_id, jnp.int32)
    ended = (rows[..., None] == ends[None, None]).any(axis=-1)
    return jnp.where(jnp.cumsum(ended, axis=1) > 0, NOTHING, rows)


def shared(prefix: Sequence[int]) -> dict[str, Array]:
    """Returns the argument with which a model reads what all questions begin with only once."""
    return {"prefix": jnp.asarray(prefix, jnp.int32)} if len(prefix) else {}


def _account(
    asked: Questions, losses: Array, is_right: Array, *, num_shared: int
) -> tuple[Array, dict[str, Array]]:
    """Returns the mean loss, and the metrics listed at the beginning of this module."""
    is_asked = asked.prompt_mask.any(axis=1)
    loss = masked_mean(jnp.where(is_asked, losses, 0), is_asked)
    return loss, {
        "loss": loss,
        "accuracy": masked_mean(is_right.astype(jnp.float32), is_asked),
        "queries": is_asked.sum().astype(jnp.float32),
        "tokens_sent": (asked.prompt_mask.sum() + num_shared * is_asked.sum()).astype(jnp.float32),
    }
