"""Held-out preference pairs: whether training made a model prefer the preferred responses."""

from typing import Any

import numpy as np

from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.loss import row_losses

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

    This is the log-probability of the preferred response minus that of the rejected one by the
    model, minus the same difference by the model as it was loaded (Rafailov et al. 2023,
    arXiv:2305.18290, equation 7). Above 0, training has increased the preference for the
    preferred response.

    Args:
      model: the frozen model, or stacked models.
      params: merged over the model.
      tables: the rows with preferred responses, and with rejected responses.
      rows: `[n]` int, row numbers.
      preferred: `[n]`, the model's losses of the preferred responses, nats, if already known.
      batch_size: rows in one compiled call.
    """

    given: dict[str, Any] = {"rows": rows, "batch_size": batch_size}

    def nats(table, *, as_loaded=False):
        return row_losses(model, params, table, **given, as_loaded=as_loaded).nats

    one, other = tables
    if preferred is None:
        preferred = nats(one)
    margin = nats(other) - preferred
    return margin - (nats(other, as_loaded=True) - nats(one, as_loaded=True))
