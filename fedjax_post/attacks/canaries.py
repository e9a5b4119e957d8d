"""Canaries: rows of random tokens whose memorisation can be measured, and extraction of rows.

Carlini et al., "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural
Networks", USENIX Security 2019, arXiv:1802.08232. Some clients get a row with a response that was
drawn at random, several times. How far the trained model prefers it to other responses that could
have been drawn is its exposure: about 1.4 bits on average where nothing was memorised, log2 of the
number of responses where it is preferred to all others.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_post.attacks.hostile_rows import rewritten, rows_of
from fedjax_post.data.batches import TokenClients
from fedjax_post.data.table import TokenTable, gather, take_rows
from fedjax_post.evaluate.loss import row_losses
from fedjax_post.model.views import LanguageModel

PyTree = Any
_STREAM = 0x63616E61  # separates the draws of canaries from other draws of the same seed


class Canaries(NamedTuple):
    """Rows that were planted, and rows that could have been."""

    clients: TokenClients  # the population, with the canaries among its rows
    holders: np.ndarray  # [c], int64: the client that holds each canary
    planted: TokenTable  # [c] rows
    others: TokenTable  # [r] rows with the prompt of the first canary and another response


def plant_canaries(
    clients: TokenClients,
    *,
    num_canaries: int,
    num_others: int = 1023,
    length: int = 4,
    times: int = 4,
    vocabulary: np.ndarray,
    end: int,
    seed: int,
) -> Canaries:
    """Returns the clients, some of which hold a canary in place of some of their rows.

    A canary keeps the prompt of the first row that it replaces. Its response is a draw from all
    sequences of `length` tokens of the vocabulary.

    Args:
      clients: the population.
      num_canaries: c, each with another client.
      num_others: r, responses that are drawn but not planted, with which canaries are compared.
      length: tokens of a response, without its end.
      times: rows of a client that the canary replaces, or all of them if it has fewer.
      vocabulary: tokens of which responses are drawn, `[N]` int.
      end: the token that ends a response.
      seed: of all draws.

    Raises:
      ValueError: if there are more canaries than clients.
    """
    if not 0 < num_canaries <= len(clients):
        raise ValueError(
            f"num_canaries must be from 1 to the {len(clients)} clients, got {num_canaries}"
        )
    rng = np.random.default_rng((seed, _STREAM))
    holders = np.sort(rng.permutation(len(clients))[:num_canaries])
    drawn = rng.choice(np.asarray(vocabulary, np.int32), (num_canaries + num_others, length))
    ends = np.full((len(drawn), 1), end, np.int32)
    responses = np.concatenate([drawn, ends], axis=1)
    everyone, table = np.arange(len(clients)), clients.table
    held = [rows_of(clients, everyone == holder)[:times] for holder in holders.tolist()]
    rows, counts = np.concatenate(held), list(map(len, held))
    firsts = np.array([own[0] for own in held])
    prompts: dict[str, Any] = {
        name: _filled(getattr(table, name), rows, np.repeat(firsts, counts))
        for name in ("chunk", "start", "prompt_length")
    }
    repeated = np.repeat(responses[:num_canaries], counts, axis=0)
    table = rewritten(table._replace(**prompts), rows, responses=list(repeated))
    planted = take_rows(table, firsts)
    alike = take_rows(planted, np.zeros(num_others, np.int64))
    others = rewritten(alike, np.arange(num_others), responses=list(responses[num_canaries:]))
    return Canaries(dataclasses.replace(clients, table=table), holders, planted, others)


def exposure(losses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the exposure of canaries, `[c]`, bits: log2 of the candidates, less log2 of the rank.

    The candidates are the canary and the r others, of which its rank is 1 if its loss is least. It
    is exact if the others are all that could have been drawn, and an estimate from a sample else.

    >>> exposure(np.array([0.5, 2.5]), np.array([1.0, 2.0, 3.0])).round(2).tolist()
    [2.0, 0.42]

    Args:
      losses: of the canaries, `[c]`.
      others: of responses that were not planted, `[r]`.
    """
    rank = 1 + np.searchsorted(np.sort(others), losses, "left")
    return np.log2(len(others) + 1) - np.log2(rank)


def exposure_of(model: LanguageModel, params: PyTree, canaries: Canaries) -> np.ndarray:
    """Returns the exposure of each planted canary in a model, `[c]`, bits.

    Args:
      model: the frozen model.
      params: merged over the model.
      canaries: of `plant_canaries`. All have responses of one length, so that their summed
        losses can be compared.
    """
    nats = [
        row_losses(model, params, table, rows=np.arange(len(table.length))).nats
        for table in (canaries.planted, canaries.others)
    ]
    return exposure(*nats)


def extracted(
    model: LanguageModel,
    params: PyTree,
    table: TokenTable,
    *,
    rows: np.ndarray,
    num_tokens: int,
    end: int,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns which rows a model gives away: it continues their prompts verbatim, `[n]` bool.

    Carlini et al., "Quantifying Memorization Across Neural Language Models", ICLR 2023,
    arXiv:2202.07646: greedy decoding of `num_tokens` tokens, all of which must be the row's own.
    Rows with fewer tokens in their response must be continued up to their end.

    Args:
      model: the frozen model; it must give text.
      params: merged over the model.
      table: tokenised rows.
      rows: `[n]` int, row numbers.
      num_tokens: of a continuation, at least 1.
      end: the token that ends a response.
      batch_size: rows in one compiled call.
    """
    width = int(table.prompt_length[rows].max())
    given = np.zeros(len(rows), bool)
    for first in range(0, len(rows), batch_size):
        part = np.resize(rows[first : first + batch_size], min(batch_size, len(rows)))
        tokens = gather(table, part)[0]
        sizes, lengths = table.prompt_length[part], table.length[part]
        place = np.arange(width)[None] - (width - sizes[:, None])  # of the prompt, from the right
        prompts = np.take_along_axis(tokens, np.maximum(place, 0), axis=1)
        answers = model.answer(
            params,
            jnp.asarray(np.where(place >= 0, prompts, table.pad_id)),
            jnp.asarray(place >= 0),
            max_new_tokens=num_tokens,
            eos_id=end,
            pad_id=table.pad_id,
        )
        at = sizes[:, None] + np.arange(num_tokens)[None]
        wanted = np.take_along_axis(tokens, np.minimum(at, tokens.shape[1] - 1), axis=1)
        equal = (np.asarray(answers) == wanted) | (at >= lengths[:, None])
        count = len(rows[first : first + batch_size])
        given[first : first + count] = equal.all(axis=1)[:count]
    return given


def _filled(column: np.ndarray, rows: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Returns a column whose entries in some rows are those of other rows."""
    found = np.array(column)
    found[rows] = column[sources]
    return found
