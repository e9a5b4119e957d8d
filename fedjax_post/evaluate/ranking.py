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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.data.table import gather
from fedjax_post.evaluate.choices import Choices, right_choices
from fedjax_post.evaluate.generation import NoteFn
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.stacked import apply, in_batches, num_models, owner_of

PyTree = Any


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


def rank(
    model: Any, params: PyTree, heldout: HeldOut, *, note_fn: NoteFn | None = None
) -> dict[str, np.ndarray]:
    """Returns by score whether each row's label is ranked first, float64 `[n]`; NaN if left out.

    A model without a number for some label ranks none first: the row counts as wrong.

    Args:
      model: the frozen model, with access to LOGITS, or stacked models.
      params: merged over the model.
      heldout: the rows, and their possible answers.
      note_fn: called once with the prompts of all rows that are ranked; not with stacked models.
    """
    right, choices = right_labels(heldout), heldout.choices
    assert choices is not None
    ranked = np.flatnonzero(right >= 0)
    rows = heldout.rows[ranked]
    sizes = heldout.table.prompt_length[rows].tolist()
    tokens = gather(heldout.table, rows)[0]
    prompts = [ids[:size] for ids, size in zip(tokens, sizes, strict=True)]
    owner, models = owner_of(model, rows), np.arange(num_models(model))
    prefix = heldout.prefix[: len(choices.null_prompt) - 1]
    whole = [*prompts, *[choices.null_prompt] * len(models)]  # one for each model
    if note_fn is not None and len(prompts):
        asked, mask = _padded([ids[len(prefix) :] for ids in prompts])
        note_fn(params, asked, mask, prefix=prefix, answer=choices.tokens.shape[1])
    found_at = choice_log_probs(
        model,
        params,
        [ids[len(prefix) :] for ids in whole],
        choices,
        owner=np.concatenate([owner, models]),
        batch_size=heldout.batch_size,
        prefix=prefix,
    )
    given, prior = found_at[: len(rows)], found_at[len(rows) :][owner]
    readings = {
        "accuracy": given,
        "accuracy_per_token": given / choices.length,
        "accuracy_pmi": given - prior,
    }
    found = {name: np.full(len(right), np.nan) for name in readings}
    for name, values in readings.items():
        first = np.where(np.isnan(values).any(axis=1), -1, values.argmax(axis=1))
        found[name][ranked] = first == right[ranked]
    return found


def choice_log_probs(
    model: Any,
    params: PyTree,
    prompts: Sequence[np.ndarray],
    choices: Choices,
    *,
    owner: np.ndarray | None = None,
    batch_size: int = 32,
    prefix: tuple[int, ...] = (),
) -> np.ndarray:
    """Returns the log-probability of each label after each prompt, nats, float64 `[n, A]`.

    A prompt is read once for all labels, and the prefix once for a batch. Prompts of similar
    lengths are read together.

    Args:
      model: the frozen model, with access to LOGITS, or stacked models.
      params: merged over the model.
      prompts: token ids of each prompt, at least one.
      choices: the possible answers.
      owner: `[n]` int, the client of each prompt; None with one model.
      batch_size: prompts in one compiled call.
      prefix: tokens that precede every prompt.
    """
    sizes = np.array([len(prompt) for prompt in prompts])
    pairs = zip(choices.tokens.tolist(), choices.length.tolist(), strict=True)
    labels = tuple(tuple(ids[:length]) for ids, length in pairs)
    found = np.zeros((len(prompts), len(labels)))
    owner = np.zeros(len(prompts), np.int64) if owner is None else owner
    for places, width in in_batches(model, owner, batch_size, sizes=sizes):
        real = np.flatnonzero(places >= 0)
        part = places[real]
        tokens, mask = np.zeros((2, len(places), width), np.int32)
        tokens[real], mask[real] = _padded([prompts[i] for i in part.tolist()], width=width)
        given = {"labels": labels, "prefix": prefix}
        log_probs = apply(_batch_log_probs, model, params, tokens, mask, **given)
        found[part] = np.asarray(log_probs)[real]
    return found


def _padded(
    prompts: Sequence[np.ndarray], *, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts padded on the left, and 1 for their tokens, int32 `[n, W]` each."""
    width = max(map(len, prompts)) if width is None else width
    tokens, mask = np.zeros((2, len(prompts), width), np.int32)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = ids, 1
    return tokens, mask


@functools.partial(jax.jit, static_argnames=("labels", "prefix"))
def _batch_log_probs(model, params, prompts, mask, *, labels, prefix):
    """Returns the log-probability of each label after each prompt, `[B, A]`.

    Args:
      model: the frozen model.
      params: merged over the model.
      prompts: int32 `[B, W]`, padded on the left.
      mask: int32 `[B, W]`, 0 for padding.
      labels: the tokens of A labels.
      prefix: tokens before every prompt.
    """
    (batch, width), longest = prompts.shape, max(map(len, labels))
    where = {"mask": mask.astype(bool), "num_slots": width + longest - 1}
    front = jnp.asarray(prefix, jnp.int32)
    logits, cache = model.prefill(params, prompts, prefix=front, **where)
    first = np.array([ids[0] for ids in labels])
    found = jax.nn.log_softmax(logits)[:, first]
    longer = [number for number, ids in enumerate(labels) if len(ids) > 1]
    if not longer:
        return found
    num_prompt, here = mask.sum(axis=1), jnp.ones((batch, 1), bool)

    def read(ids, length):
        def step(cache, at):
            token = jnp.broadcast_to(ids[at - 1], (batch, 1))
            positions = (num_prompt + at - 1)[:, None]
            logits, cache = model.step(params, token, positions=positions, mask=here, cache=cache)
            log_probs = jax.nn.log_softmax(logits)[:, ids[at]]
            return cache, jnp.where(at < length, log_probs, 0)

        return jax.lax.scan(step, cache, jnp.arange(1, longest, dtype=jnp.int32))[1].sum(axis=0)

    ids = np.zeros((len(longer), longest), np.int32)
    for row, number in zip(ids, longer, strict=True):
        row[: len(labels[number])] = labels[number]
    lengths = np.array([len(labels[number]) for number in longer], np.int32)
    rest = jax.lax.map(lambda label: read(*label), (jnp.asarray(ids), jnp.asarray(lengths)))
    return found.at[:, np.array(longer)].add(rest.T)
