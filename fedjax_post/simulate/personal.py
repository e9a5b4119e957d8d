"""Reads the clients' own states after a run from its store."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_post.core.algorithm import Algorithm, PyTree
from fedjax_post.core.engine import ClientState
from fedjax_post.data.clients import Clients
from fedjax_post.simulate.processes import PartedStore
from fedjax_post.simulate.run import client_state_like, restore


class Personal(NamedTuple):
    """Clients that have taken part, and the state of each at the last checkpoint."""

    client_ids: np.ndarray  # [n], int64, ascending
    states: ClientState  # leaves [n, ...], numpy


def read_clients(
    directory: str | Path,
    algorithm: Algorithm,
    model: PyTree,
    clients: Clients,
    *,
    params: PyTree,
    limit: int | None = None,
) -> Personal:
    """Returns the states of clients that took part in a run, for `deployed`.

    Args:
      directory: the run's `plan.directory`; the run must not be in progress.
      algorithm: as given to `run`.
      model: as given to `run`.
      clients: as given to `run`.
      params: as given to `run`; only shapes matter.
      limit: maximum number of clients, spread evenly over those seen; None: all.

    Raises:
      FileNotFoundError: if the directory contains no checkpoint.
    """
    snapshot = restore(directory, algorithm, params)
    if snapshot is None:
        raise FileNotFoundError(f"{directory} holds no checkpoint to read clients from")
    like = client_state_like(algorithm, model, clients, params)
    store = PartedStore(
        Path(directory) / "clients", like, len(clients), snapshot.version, kept=None
    )
    try:
        seen = store.seen()
        if limit is not None and limit < len(seen):
            seen = seen[np.linspace(0, len(seen) - 1, limit).round().astype(int)]
        return Personal(seen, store.read(seen)[0])
    finally:
        store.close()
