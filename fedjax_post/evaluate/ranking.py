"""Ranks the possible answers of labelled rows by their log-probabilities; generates nothing.

| score | what must be largest for the right label | also known as |
| --- | --- | --- |
| accuracy | log p(label given the prompt), the sum over its tokens | lm-eval's `acc` |
| accuracy_per_token | the same divided by the number of its tokens | length normalisation |
| accuracy_pmi | log p(label given the prompt) - log p(label given the null prompt) | PMI_DC |

lm-eval's `acc_norm` divides by bytes in place of tokens, and its `acc_mutual_info` has an empty
null prompt. The third score is that of Holtzman et al., "Surface Form Competition", EMNLP 2021,
arXiv:2104.08315. Its null prompt is `Choices.null_prompt`: the template without the row, that is,
the tokens with which the prompts of all rows begin, followed by those with which they end.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.data.table import gather, response_tokens
from fedjax_post.evaluate.choices import Choices, right_choices
from fedjax_post.evaluate.generation import NoteFn
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.stacked import apply, in_batches, num_models, owner_of

PyTree = Any


class Ranks(NamedTuple):
    """Which rows are right, and the loss of the rows that were read for this."""

    shares: dict[str, np.ndarray]  # score -> float64 [n]: whether it is right; NaN if left out
    nats: np.ndarray  # [n] float64: -log p(response given the prompt); NaN if it is not known


class LogProbs(NamedTuple):
    """Log-probabilities after each of n prompts."""

    labels: np.ndarray  # [n, A] float64, nats: of each label
    responses: np.ndarray  # [n] float64, nats: of a response; 0 of an empty one


def right_labels(heldout: HeldOut) -> np.ndarray:
    """Returns the number of the label of each held-out row, int64 `[n]`; -1 if it is not ranked.

    A row is left out if it is cut or has no prompt, if its response is not among the labels, or if
    its prompt and the longest label have no room in the model's context.
    """
    table, rows, choices = heldout.table, heldout.rows, heldout.choices
    assert choices is not None  # guaranteed by the caller
    right = right_choices(choices, table, rows, eos_id=heldout.eos_id, decode_fn=heldout.decode_fn)
    sizes = table.prompt_length[rows]
    fits = sizes > 0
    if heldout.room is not None:
        fits &= sizes + choices.tokens.shape[1] <= heldout.room
    return np.where(fits, right, -1)


def rank(model: Any, params: PyTree, heldout: HeldOut, *, note_fn: NoteFn | None = None) -> Ranks:
    """Returns by score whether each row's label is ranked first, and the rows' losses.

    A model without a number for some label ranks none first: the row counts as wrong. A row is read
    once for both. The loss is not known of rows that are not ranked, of chats with several
    responses, and of pairs: both sides of a pair have to be read alike, so that a margin which
    nothing has changed is 0.

    Args:
      model: the frozen model, with access to LOGITS, or stacked models.
      params: merged over the model.
      heldout: the rows, and their possible answers.
      note_fn: called once with the prompts of all rows that are ranked; not with stacked models.
    """
    right, choices = right_labels(heldout), heldout.choices
    assert choices is not None
    ranked = np.flatnonzero(right >= 0)
    rows, (prompts, null_prompt, prefix) = heldout.rows[ranked], questions(heldout, ranked)
    if note_fn is not None and len(prompts):
        asked, real = padded(prompts)
        note_fn(params, asked, real, prefix=prefix, answer=choices.tokens.shape[1])
    owner, models = owner_of(model, rows), np.arange(num_models(model))
    is_whole, responses = _responses(heldout, rows)
    labels, nats = choice_log_probs(
        model,
        params,
        [*prompts, *[null_prompt] * len(models)],  # one for each model
        choices,
        responses=np.pad(responses, ((0, len(models)), (0, 0)), constant_values=-1),
        owner=np.concatenate([owner, models]),
        batch_size=heldout.batch_size,
        prefix=prefix,
    )
    given, prior = labels[: len(rows)], labels[len(rows) :][owner]
    readings = {
        "accuracy": given,
        "accuracy_per_token": given / choices.length,
        "accuracy_pmi": given - prior,
    }
    shares = {
        name: among_all(_first(read) == right[ranked], right) for name, read in readings.items()
    }
    return Ranks(shares, among_all(np.where(is_whole, -nats[: len(rows)], np.nan), right))


class Questions(NamedTuple):
    """Prompts that are ranked, int32 each, without what they begin with."""

    prompts: list[np.ndarray]  # of rows
    null_prompt: np.ndarray
    prefix: tuple[int, ...]  # tokens that precede each of them


def questions(heldout: HeldOut, ranked: np.ndarray) -> Questions:
    """Returns the prompts of rows, by their places among the held-out rows, `[m]` int."""
    assert heldout.choices is not None  # guaranteed by the caller
    table, rows, null_prompt = heldout.table, heldout.rows[ranked], heldout.choices.null_prompt
    prefix = heldout.prefix[: len(null_prompt) - 1]
    cut, sizes = slice(len(prefix), None), table.prompt_length[rows].tolist()
    prompts = [ids[:size][cut] for ids, size in zip(gather(table, rows)[0], sizes, strict=True)]
    return Questions(prompts, null_prompt[cut], prefix)


def _responses(heldout: HeldOut, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows have a response whose loss can be known, and these, int32 `[n, R]`.

    R is that of the longest label and its end, whichever rows there are. Spaces around a label can
    make a response longer.
    """
    table, choices = heldout.table, heldout.choices
    assert choices is not None
    if heldout.rejected is not None:
        return np.zeros(len(rows), bool), np.full((len(rows), 1), -1, np.int32)
    width, sizes = choices.tokens.shape[1] + 1, table.length[rows] - table.prompt_length[rows]
    is_only = gather(table, rows)[1].sum(axis=1) == sizes
    return is_only & (sizes <= width), response_tokens(table, rows, width=width)


def _first(log_probs: np.ndarray) -> np.ndarray:
    """Returns the number of the likeliest label of each row, -1 if some label has no number."""
    return np.where(np.isnan(log_probs).any(axis=1), -1, log_probs.argmax(axis=1))


def among_all(values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the values of ranked rows among all rows, float64 `[n]`, with NaN for the others."""
    found = np.full(len(right), np.nan)
    found[right >= 0] = values
    return found


def choice_log_probs(
    model: Any,
    params: PyTree,
    prompts: Sequence[np.ndarray],
    choices: Choices,
    *,
    responses: np.ndarray | None = None,
    owner: np.ndarray | None = None,
    batch_size: int = 32,
    prefix: tuple[int, ...] = (),
) -> LogProbs:
    """Returns the log-probability of each label, and of a response, after each prompt.

    A prompt is read once for all of them, and the prefix once for a batch. Prompts of similar
    lengths are read together.

    Args:
      model: the frozen model, with access to LOGITS, or stacked models.
      params: merged over the model.
      prompts: token ids of each prompt, at least one.
      choices: the possible answers.
      responses: `[n, R]` int32, a response to each prompt, -1 after its end; None for empty ones.
      owner: `[n]` int, the client of each prompt; None with one model.
      batch_size: prompts in one compiled call.
      prefix: tokens that precede every prompt.
    """
    sizes = np.array([len(prompt) for prompt in prompts])
    pairs = zip(choices.tokens.tolist(), choices.length.tolist(), strict=True)
    labels = tuple(tuple(ids[:length]) for ids, length in pairs)
    found = LogProbs(np.zeros((len(prompts), len(labels))), np.zeros(len(prompts)))
    owner = np.zeros(len(prompts), np.int64) if owner is None else owner
    responses = np.full((len(prompts), 1), -1, np.int32) if responses is None else responses
    for places, width in in_batches(model, owner, batch_size, sizes=sizes):
        real = np.flatnonzero(places >= 0)
        part = places[real]
        tokens, mask = np.zeros((2, len(places), width), np.int32)
        tokens[real], mask[real] = padded([prompts[i] for i in part.tolist()], width=width)
        given = {"labels": labels, "prefix": prefix}
        arrays = tokens, mask, responses[places]
        log_probs = apply(_batch_log_probs, model, params, *arrays, **given)
        for values, one in zip(found, log_probs, strict=True):
            values[part] = np.asarray(one)[real]
    return found


def padded(
    prompts: Sequence[np.ndarray], *, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts padded on the left, and 1 for their tokens, int32 `[n, W]` each."""
    width = max(map(len, prompts)) if width is None else width
    tokens, mask = np.zeros((2, len(prompts), width), np.int32)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = ids, 1
    return tokens, mask


@functools.partial(jax.jit, static_argnames=("labels", "prefix"))
def _batch_log_probs(model, params, prompts, mask, responses, *, labels, prefix):
    """Returns the log-probabilities of each label `[B, A]` and of the response `[B]`.

    Args:
      model: the frozen model.
      params: merged over the model.
      prompts: int32 `[B, W]`, padded on the left.
      mask: int32 `[B, W]`, 0 for padding.
      responses: int32 `[B, R]`, -1 after their end.
      labels: the tokens of A labels.
      prefix: tokens before every prompt.
    """
    (batch, width), longest = prompts.shape, max(map(len, labels))
    more = max(longest, responses.shape[1]) - 1
    front = jnp.asarray(prefix, jnp.int32)
    logits, cache = model.prefill(
        params, prompts, mask=mask.astype(bool), num_slots=width + more, prefix=front
    )
    first = jax.nn.log_softmax(logits)
    after = functools.partial(_log_probs_after, model, params, mask.sum(axis=1), first, cache)
    found = first[:, np.array([ids[0] for ids in labels])]
    longer = [number for number, ids in enumerate(labels) if len(ids) > 1]
    if longer:
        ids = np.full((len(longer), longest), -1, np.int32)
        for row, number in zip(ids, longer, strict=True):
            row[: len(labels[number])] = labels[number]
        each = lambda label: after(jnp.broadcast_to(label, (batch, longest)))
        found = found.at[:, np.array(longer)].set(jax.lax.map(each, jnp.asarray(ids)).T)
    return found, after(responses)


def _log_probs_after(model, params, num_prompt, first, cache, answers):
    """Returns the log-probability of one answer to each prompt, `[B]`; 0 of an empty one.

    Args:
      model: the frozen model.
      params: merged over the model.
      num_prompt: `[B]` int, tokens of each prompt.
      first: `[B, V]`, log-probabilities of the first token.
      cache: of the prompts, with room for an answer but its last token.
      answers: int32 `[B, T]`, -1 after their end.
    """
    length, here = answers.shape[1], jnp.ones((len(answers), 1), bool)
    at_token = lambda values, ids: jnp.where(
        ids < 0, 0, jnp.take_along_axis(values, jnp.maximum(ids, 0)[:, None], axis=1)[:, 0]
    )
    found = at_token(first, answers[:, 0])
    if length == 1:
        return found

    def step(cache, at):
        token = jnp.maximum(answers[:, at - 1], 0)[:, None]
        positions = (num_prompt + at - 1)[:, None]
        logits, cache = model.step(params, token, positions=positions, mask=here, cache=cache)
        return cache, at_token(jax.nn.log_softmax(logits), answers[:, at])

    rest = jax.lax.scan(step, cache, jnp.arange(1, length, dtype=jnp.int32))[1]
    return found + rest.sum(axis=0)
