"""Which rows are scored for each client.

| the data | rows of a client | kind, see `evaluate.clients.ROWS` |
| --- | --- | --- |
| held-out rows name clients, or are divided by the rule of the training rows | its own | own |
| neither, but rows have labels | held-out rows with a label that its rows have | labels |
| neither | for a shared model, its training rows | training |
| neither | for a personal model, all held-out rows | all |
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_post.data.load import Loaded
from fedjax_post.data.partition import Partition
from fedjax_post.evaluate.heldout import HeldOut, choose_rows


def kind_of(data: Loaded) -> str:
    """Returns the kind of rows of a client that a shared model is scored on."""
    by = data.report["heldout_by"]
    if by is None:
        return "training"
    # Natural clients that no held-out row names: dealing rows out among them would be arbitrary
    dealt = by == "label" and data.report["partition"] == "natural"
    return "labels" if dealt else "own"


def places_of(data: Loaded, heldout: HeldOut, client_ids: np.ndarray) -> list[np.ndarray]:
    """Returns the places of clients' rows among the scored held-out rows, ascending.

    Args:
      data: the clients and held-out rows, of kind own or labels.
      heldout: the rows that are scored.
      client_ids: `[n]` int.

    Returns:
      `[m]` int for each client; empty if no row of it is scored.
    """
    if kind_of(data) == "labels":
        return _places_by_label(data, heldout, client_ids)
    assert data.heldout_partition is not None  # `heldout_by` says so
    place_of = np.full(len(heldout.table.length), -1, np.int64)
    place_of[heldout.rows] = np.arange(len(heldout.rows))
    places = [place_of[rows] for rows in rows_of(data.heldout_partition, client_ids)]
    return [np.sort(own[own >= 0]) for own in places]


def _places_by_label(data: Loaded, heldout: HeldOut, client_ids: np.ndarray) -> list[np.ndarray]:
    held, clients = heldout.table.label, table_of(data)
    assert held is not None and clients.table.label is not None  # noqa: PT018
    labels = held[heldout.rows]
    own = (clients.table.label[rows] for rows in rows_of(clients.partition, client_ids))
    return [np.flatnonzero(np.isin(labels, np.unique(one))) for one in own]


def training_rows(
    data: Loaded, heldout: HeldOut, client_ids: np.ndarray, *, limit: int, seed: int
) -> tuple[HeldOut, list[np.ndarray]]:
    """Returns the rows that clients train on, to be scored, and the places of each client's.

    Args:
      data: the clients.
      heldout: the settings.
      client_ids: `[n]` int.
      limit: maximum number of rows of a client; 0: all.
      seed: of the choice of rows.
    """
    clients = table_of(data)
    rows = [
        own[choose_rows(len(own), limit, seed=seed)]
        for own in rows_of(clients.partition, client_ids)
    ]
    return _scored(data, heldout, np.concatenate(rows)), _places([len(own) for own in rows])


def rows_apart(
    data: Loaded, heldout: HeldOut, *, seed: int
) -> tuple[HeldOut, list[np.ndarray]] | None:
    """Returns rows of the held-out clients, to be scored, and the places of each client's.

    They are drawn from all rows of these clients, at most as many as held-out rows are scored, so
    that the scores of both are equally precise. None if all clients train.
    """
    if data.apart is None:
        return None
    offsets, indices = data.apart.partition
    chosen = choose_rows(len(indices), len(heldout.rows), seed=seed)
    sizes = np.diff(np.searchsorted(chosen, offsets))
    return _scored(data, heldout, indices[chosen]), _places(sizes.tolist())


def table_of(data: Loaded) -> Any:
    """Returns the clients with their `table` and `partition`, without ranks around them."""
    return getattr(data.clients, "clients", data.clients)


def rows_of(partition: Partition, client_ids: np.ndarray) -> list[np.ndarray]:
    """Returns the rows of some clients, `[n_k]` each."""
    offsets, indices = partition
    return [indices[offsets[i] : offsets[i + 1]] for i in client_ids.tolist()]


def _scored(data: Loaded, heldout: HeldOut, rows: np.ndarray) -> HeldOut:
    """Returns the settings with rows of the clients' table in place of held-out rows."""
    clients = table_of(data)
    rejected = getattr(clients, "rejected", None)
    return heldout._replace(table=clients.table, rows=rows, rejected=rejected)


def _places(sizes: Sequence[int]) -> list[np.ndarray]:
    """Returns consecutive places, as many to each client as it has rows."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
