"""Held-out pairs: whether a model prefers what was preferred, against the model it came from."""

from typing import Any

import numpy as np

from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.loss import row_losses
from fedjax_post.objectives.tokens import reference_of

PyTree = Any


def reward_margins(
    model: Any,
    params: PyTree,
    tables: tuple[TokenTable, TokenTable],
    *,
    rows: np.ndarray,
    preferred: np.ndarray | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns each pair's margin of implicit rewards over beta, nats, `[n]` float64.

    The log-probability of the preferred response less that of the other, by the model, less the
    same by the model as it was loaded (Rafailov et al. 2023, arXiv:2305.18290, equation 7).
    Above 0 the model prefers what was preferred more than it did.

    Args:
      model: the frozen model.
      params: merged over it.
      tables: the preferred responses, and the others.
      rows: `[n]` int, row numbers.
      preferred: `[n]`, the losses of the preferred responses by the model, nats, where they are
        known already.
      batch_size: rows in one compiled call.
    """

    def nats(model, params, table):
        return row_losses(model, params, table, rows=rows, batch_size=batch_size).nats

    one, other = tables
    base = reference_of(model)
    if preferred is None:
        preferred = nats(model, params, one)
    margin = nats(model, params, other) - preferred
    return margin - (nats(base, {}, other) - nats(base, {}, one))
