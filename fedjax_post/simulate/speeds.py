"""Speeds of clients: seconds of virtual time for a visit, including download and upload."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedjax_post.simulate.programs import Chunk

# (client id, round in which the visit began) -> seconds, positive
Speeds = Callable[[int, int], float]


def equal() -> Speeds:
    """Returns speeds at which every visit takes one second."""
    return lambda client_id, round: 1.0


def lognormal(sigma: float, *, seed: int) -> Speeds:
    """Returns speeds at which a client takes exp(sigma z) seconds, with its own z from N(0, 1).

    The median is one second. A client takes equally long at each of its visits.

    Raises:
      ValueError: if `sigma` is negative or not finite.
    """
    if not 0 <= sigma < np.inf:
        raise ValueError(f"sigma must be finite and at least 0, got {sigma}; 0 is equal speeds")
    draw = lambda client_id: np.random.default_rng((seed, 3, client_id)).standard_normal()
    return lambda client_id, round: float(np.exp(sigma * draw(client_id)))


def from_seconds(seconds: np.ndarray) -> Speeds:
    """Returns speeds from an array of seconds, `[clients]` or `[clients, rounds]`.

    Rounds after its end start again at the first column.

    Raises:
      ValueError: for another shape, or a number that is not positive and finite.
    """
    table = np.asarray(seconds, np.float64)
    if table.ndim not in (1, 2) or not table.size:
        raise ValueError(f"speeds must be [clients] or [clients, rounds], got {table.shape}")
    table = table.reshape(len(table), -1)
    if not (np.isfinite(table) & (table > 0)).all():
        client_id = int(np.argwhere(~(np.isfinite(table) & (table > 0)))[0, 0])
        raise ValueError(f"the speeds of client {client_id} are not all positive, finite seconds")
    return lambda client_id, round: float(table[client_id, round % table.shape[1]])


def slowest(speeds: Speeds, chunks: Sequence[Chunk]) -> float:
    """Returns the seconds until the last client of some chunks finishes; 0 without clients."""
    visits = [(int(i), int(chunk.round)) for chunk in chunks for i in chunk.client_ids if i >= 0]
    return max((speeds(*visit) for visit in visits), default=0.0)


def read_speeds(path: str | Path, population: int) -> Speeds:
    """Returns speeds from a file: a `.npy` array, or one line of JSON per client, by id.

    A line is a number of seconds, or a list of numbers, one for each round, of equal length in
    all lines.

    Raises:
      OSError: if the file cannot be read.
      ValueError: for an invalid line, or another number of lines than clients.
    """
    path = Path(path)
    if path.suffix == ".npy":
        table = np.load(path)
    else:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        try:
            table = np.array([json.loads(line) for line in lines], np.float64)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: {error}; give one line per client, with seconds or equally long lists"
            ) from None
    if table.ndim == 0 or len(table) != population:
        raise ValueError(f"{path} has {table.shape} seconds for {population} clients")
    return from_seconds(table)
