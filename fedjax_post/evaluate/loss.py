"""Held-out loss in nats per response token, computed in batches of rows of similar lengths."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.data.table import TokenTable, gather
from fedjax_post.evaluate.stacked import apply, in_batches, owner_of, rows_at
from fedjax_post.model.views import LanguageModel
from fedjax_post.objectives.tokens import reference_of

PyTree = Any


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
      as_loaded: whether the model is taken without `params` and without what a federation added
        to its weights.
    """
    nats_fn = _loaded_nats if as_loaded else _batch_nats
    nats, num_tokens = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    sizes = table.length[rows]
    for places, width in in_batches(model, owner_of(model, rows), batch_size, sizes=sizes):
        tokens, mask = (x[:, :width] for x in gather(table, rows_at(rows, places)))
        found = np.asarray(apply(nats_fn, model, params, tokens, mask))
        real = places >= 0
        nats[places[real]], num_tokens[places[real]] = found[real], mask.sum(axis=1)[real]
    return RowLosses(nats, num_tokens)


def mean_loss(losses: RowLosses) -> float:
    """Returns the mean over response tokens, not over rows, in nats per token."""
    return float(losses.nats.sum() / losses.num_tokens.sum())


@jax.jit
def _batch_nats(model, params, tokens, mask):
    return jax.vmap(lambda t, m: model.total_loss(params, t[None], m[None]).nats)(tokens, mask)


def _loaded_nats(model, params, tokens, mask):
    del params
    return _batch_nats(reference_of(model), {}, tokens, mask)
