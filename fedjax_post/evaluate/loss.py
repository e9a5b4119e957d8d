"""Held-out loss in nats per response token, computed in batches of one compiled shape."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.data.table import TokenTable, gather
from fedjax_post.model.views import LanguageModel

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
) -> RowLosses:
    """Returns the summed negative log-likelihood of each row's response.

    One shape is compiled, whatever the number of rows: the last batch is padded.

    Args:
      model: the frozen model.
      params: merged over the model.
      table: tokenised rows.
      rows: `[n]` int, row numbers.
      batch_size: rows in one compiled call. Logits are computed only where a response is, for
        a part of the tokens at a time.
    """
    sums, counts = [], []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        tokens, mask = gather(table, part, num_rows=batch_size)
        sums.append(np.asarray(_batch_nats(model, params, tokens, mask))[: len(part)])
        counts.append(mask.sum(axis=1)[: len(part)])
    return RowLosses(np.concatenate(sums).astype(np.float64), np.concatenate(counts))


def mean_loss(losses: RowLosses) -> float:
    """Returns the mean over response tokens, not over rows, in nats per token."""
    return float(losses.nats.sum() / losses.num_tokens.sum())


@jax.jit
def _batch_nats(model, params, tokens, mask):
    return jax.vmap(lambda t, m: model.total_loss(params, t[None], m[None]).nats)(tokens, mask)
