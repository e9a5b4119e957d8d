"""Objectives of closed models: what can be asked of answers, or of a few log-probabilities.

A row of `{"tokens", "loss_mask"}`, as in `objectives/sft.py`, is one question, all before its
first response token, and its right answer. A row without response tokens is padding: it has
no question, is not counted, and a model elsewhere is not asked.

| metric | meaning |
| --- | --- |
| loss, accuracy | means over the questions |
| queries | questions that were asked |
| tokens_sent | tokens of these questions, each row's own; a prompt in `params` is not counted |

Nothing here is differentiated, and nothing but `answer` or `next_scores` is used of the model.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fedjax_post.objectives.tokens import masked_mean

PyTree = Any
NOTHING = -1  # in the place of a token, where there is none


class Questions(NamedTuple):
    """What is asked: a batch's rows up to their responses; W is L - 1."""

    prompts: Int[Array, "B W"]  # padded on the left with 0
    prompt_mask: Bool[Array, "B W"]  # False for padding, and all over rows without a question


def choice_loss(
    candidates: Int[Array, " A"] | Sequence[int], *, among_all: bool = False
) -> Callable:
    """The loss of choosing among candidates for the first response token; needs LOGITS.

    -log softmax over the candidates' log-probabilities at the right one, the mean over
    questions; infinite where the right token is no candidate. Of all tokens that one could
    answer with, the candidates alone compete, as in BBT (Sun et al., ICML 2022,
    arXiv:2201.03514): whoever uses the prompt must choose among them too. `among_all` makes
    every token of the vocabulary compete, so that what is learned is answered in text.

    Args:
      candidates: int32, A different tokens, at least 2: the first token of every label.
      among_all: whether the loss is the negative log-probability of the right token itself.

    Returns:
      `(params, model, batch, key) -> (loss, metrics)`.

    Raises:
      ValueError: if candidates are fewer than 2, or one comes twice.
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
        asked = questions(batch)
        scores = model.next_scores(params, *asked, candidates)
        right = responses(batch)[:, :1] == candidates[None]
        best = jnp.where(right, scores, -jnp.inf).max(axis=1)
        losses = (0.0 if among_all else jax.nn.logsumexp(scores, axis=1)) - best
        return _account(asked, losses, best >= scores.max(axis=1))

    return loss_fn


def answer_loss(*, eos_id: int | tuple[int, ...], pad_id: int, max_new_tokens: int) -> Callable:
    """The share of questions that the model answers wrongly; needs TEXT.

    An answer is right if its tokens up to the first end token are those of the response:
    the exact match of evaluation, where a text has one spelling in tokens.

    Args:
      eos_id: end token or tokens.
      pad_id: what fills an answer after its end.
      max_new_tokens: longest answer, its end included, at least 1.

    Returns:
      `(params, model, batch, key) -> (loss, metrics)`.
    """
    limits = {"max_new_tokens": max_new_tokens, "eos_id": eos_id, "pad_id": pad_id}

    def loss_fn(params, model, batch, key):
        del key
        asked = questions(batch)
        answers = up_to_end(model.answer(params, *asked, **limits), eos_id)
        wanted = up_to_end(responses(batch), eos_id)
        width = max(answers.shape[1], wanted.shape[1])
        widen = lambda rows: jnp.pad(
            rows, ((0, 0), (0, width - rows.shape[1])), constant_values=NOTHING
        )
        right = (widen(answers) == widen(wanted)).all(axis=1)
        return _account(asked, 1.0 - right, right)

    return loss_fn


def questions(batch: dict[str, Array]) -> Questions:
    """Returns all before the first response token of each row, padded on the left.

    A response at the very start of a row answers no question; such a row counts as padding.

    Raises:
      ValueError: if the batch holds packed rows.
    """
    tokens, start = batch["tokens"], _starts(batch)
    width = tokens.shape[1] - 1
    place = jnp.arange(width, dtype=jnp.int32)[None] - (width - start[:, None])
    mask = place >= 0
    shifted = jnp.take_along_axis(tokens, jnp.maximum(place, 0), axis=1)
    return Questions(jnp.where(mask, shifted, 0), mask)


def _starts(batch: dict[str, Array]) -> Int[Array, " B"]:
    """The place of each row's first response token; 0 for a row without a question."""
    if "segments" in batch:
        raise ValueError(
            "a row is one question, and these rows are packed (they have segments); "
            "set pack_length=0"
        )
    # an argmax of nothing is 0 too
    return jnp.argmax(batch["loss_mask"].astype(bool), axis=1).astype(jnp.int32)


def responses(batch: dict[str, Array]) -> Int[Array, "B L"]:
    """Each row's first run of response tokens from place 0 on, `NOTHING` behind them."""
    tokens, mask, start = batch["tokens"], batch["loss_mask"].astype(bool), _starts(batch)
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] + start[:, None]
    inside = jnp.minimum(place, tokens.shape[1] - 1)
    goes_on = (place == inside) & jnp.take_along_axis(mask, inside, axis=1)
    goes_on = jnp.cumprod(goes_on.astype(jnp.int32), axis=1) > 0
    return jnp.where(goes_on, jnp.take_along_axis(tokens, inside, axis=1), NOTHING)


def up_to_end(rows: Int[Array, "B T"], eos_id: int | tuple[int, ...]) -> Int[Array, "B T"]:
    """Rows with `NOTHING` from their first end token on."""
    ends = jnp.array((eos_id,) if isinstance(eos_id, int) else eos_id, jnp.int32)
    ended = (rows[..., None] == ends[None, None]).any(axis=-1)
    return jnp.where(jnp.cumsum(ended, axis=1) > 0, NOTHING, rows)


def _account(asked: Questions, losses: Array, is_right: Array) -> tuple[Array, dict[str, Array]]:
    """The mean loss, and the metrics of the module's head."""
    is_asked = asked.prompt_mask.any(axis=1)
    loss = masked_mean(jnp.where(is_asked, losses, 0), is_asked)
    return loss, {
        "loss": loss,
        "accuracy": masked_mean(is_right.astype(jnp.float32), is_asked),
        "queries": is_asked.sum().astype(jnp.float32),
        "tokens_sent": asked.prompt_mask.sum().astype(jnp.float32),
    }
