"""Reads the clients' own states after a run from its store."""

import contextlib
from collections.abc import Callable, Iterator
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


class Opened(NamedTuple):
    """Clients that have taken part, and a function that reads the states of some of them."""

    client_ids: np.ndarray  # [n], int64, ascending
    read: Callable[[np.ndarray], ClientState]  # (ids [m]) -> leaves [m, ...], numpy


@contextlib.contextmanager
def open_clients(
    directory: str | Path,
    algorithm: Algorithm,
    model: PyTree,
    clients: Clients,
    *,
    params: PyTree,
) -> Iterator[Opened]:
    """Returns a context in which the states of clients that took part in a run can be read.

    Args:
      directory: the run's `plan.directory`; the run must not be in progress.
      algorithm: as given to `run`.
      model: as given to `run`.
      clients: as given to `run`.
      params: as given to `run`; only shapes matter.

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
        yield Opened(store.seen(), lambda client_ids: store.read(client_ids)[0])
    finally:
        store.close()


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
      directory: as for `open_clients`.
      algorithm: as given to `run`.
      model: as given to `run`.
      clients: as given to `run`.
      params: as given to `run`; only shapes matter.
      limit: maximum number of clients, spread evenly over those seen; None: all.

    Raises:
      FileNotFoundError: as `open_clients`.
    """
    with open_clients(directory, algorithm, model, clients, params=params) as opened:
        chosen = evenly(opened.client_ids, limit)
        return Personal(chosen, opened.read(chosen))


def evenly(client_ids: np.ndarray, limit: int | None) -> np.ndarray:
    """Returns at most `limit` of some ids, spread evenly over them; None: all."""
    if limit is None or limit >= len(client_ids):
        return client_ids
    return client_ids[np.linspace(0, len(client_ids) - 1, limit).round().astype(int)]
