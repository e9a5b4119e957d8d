"""Held-out loss in nats per response token, computed in batches of rows of similar lengths."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.data.table import TokenTable, gather
from fedjax_post.evaluate.stacked import apply, in_batches, owner_of, rows_at
from fedjax_post.model.views import LanguageModel
from fedjax_post.objectives.tokens import reference_of

PyTree = Any
_BLOCK = 2**12  # rows that are in memory at once


class RowLosses(NamedTuple):
    """The loss of every row as a sum and a count, so that means over any rows can be computed."""

    nats: np.ndarray  # [n], float64: summed over the row's response tokens
    num_tokens: np.ndarray  # [n], int64: response tokens, at least 1


def row_losses(
    model: LanguageModel,
    params: PyTree,
    table: TokenTable,
    *,
    rows: np.ndarray,
    batch_size: int = 32,
    known: np.ndarray | None = None,
    as_loaded: bool = False,
) -> RowLosses:
    """Returns the summed negative log-likelihood of each row's response.

    Rows of similar lengths are read together, and the last batch is filled up, so that few shapes
    are compiled, whatever the number of rows.

    Args:
      model: the frozen model, or stacked models.
      params: merged over the model.
      table: tokenised rows.
      rows: `[n]` int, row numbers.
      batch_size: rows in one compiled call. Logits are computed only where a response is, for
        a part of the tokens at a time.
      known: `[n]` float, the sums that are known already, NaN for those that are not; None if none
        is. Rows of known sums are not read.
      as_loaded: whether the model is taken without `params` and without what a federation added
        to its weights.
    """
    nats_fn = _loaded_nats if as_loaded else _batch_nats
    nats = np.full(len(rows), np.nan) if known is None else known.astype(np.float64)
    left = np.flatnonzero(np.isnan(nats))
    owner, sizes = owner_of(model, rows)[left], table.length[rows[left]]
    for places, width in in_batches(model, owner, batch_size, sizes=sizes):
        tokens, mask = (x[:, :width] for x in gather(table, rows_at(rows[left], places)))
        found = np.asarray(apply(nats_fn, model, params, tokens, mask))
        real = places >= 0
        nats[left[places[real]]] = found[real]
    return RowLosses(nats, _num_response_tokens(table, rows))


def _num_response_tokens(table: TokenTable, rows: np.ndarray) -> np.ndarray:
    """Returns the number of response tokens of rows, int64 `[n]`."""
    parts = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
    return np.concatenate([gather(table, part)[1].sum(axis=1, dtype=np.int64) for part in parts])


def mean_loss(losses: RowLosses) -> float:
    """Returns the mean over response tokens, not over rows, in nats per token."""
    return float(losses.nats.sum() / losses.num_tokens.sum())


@jax.jit
def _batch_nats(model, params, tokens, mask):
    return jax.vmap(lambda t, m: model.total_loss(params, t[None], m[None]).nats)(tokens, mask)


def _loaded_nats(model, params, tokens, mask):
    del params
    return _batch_nats(reference_of(model), {}, tokens, mask)
