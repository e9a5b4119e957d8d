"""Partitions: which rows of a table each client holds, as two arrays.

`iid` and `natural` are here; see `rules` for all rules and how an experiment names them.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.data.table import TokenTable

Rows = Sequence[Any] | np.ndarray


class Partition(NamedTuple):
    """The rows of each client; client k holds `indices[offsets[k] : offsets[k + 1]]`, ascending.

    It consists of two flat arrays, so that a population of a million clients needs 8 bytes for
    each client and 8 bytes for each row.
    """

    offsets: np.ndarray  # [N + 1], int64, from 0 to num_rows, ascending
    indices: np.ndarray  # [num_rows], int64, each row of the table at most once


def iid(num_rows: int, num_clients: int, *, seed: int = 0) -> Partition:
    """Returns a partition of shuffled rows into clients of equal size, to within one row.

    Args:
      num_rows: number of rows to divide.
      num_clients: N, at most `num_rows`.
      seed: equal seeds give equal partitions.

    Raises:
      ValueError: if there are no clients, or more clients than rows.

    Example:
      >>> partition = iid(7, 3)
      >>> partition.offsets.tolist(), sorted(partition.indices.tolist())
      ([0, 3, 5, 7], [0, 1, 2, 3, 4, 5, 6])
    """
    check_num_clients(num_clients, num_rows)
    owner = np.random.default_rng(seed).permutation(num_rows) % num_clients
    return group_by_owner(owner, num_clients)


def natural(values: Rows) -> tuple[Partition, tuple[str, ...]]:
    """Returns a partition with one client for each distinct value, and the clients' names.

    Clients are in natural order: numbers within names are compared as numbers, so that
    `client_10` comes after `client_9`.

    Args:
      values: `[num_rows]`, the client that holds each row.

    Raises:
      ValueError: if there are no rows.

    Example:
      >>> partition, names = natural(["ann", "bob", "ann"])
      >>> names, partition.offsets.tolist(), partition.indices.tolist()
      (('ann', 'bob'), [0, 2, 3], [0, 2, 1])
    """
    check_num_clients(1, len(values))
    found, owner = np.unique(np.asarray(values), return_inverse=True)
    names = tuple(map(str, found))
    if found.dtype.kind not in "iu":  # integers are in order already
        order = sorted(range(len(names)), key=lambda i: natural_key(names[i]))
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        names, owner = tuple(names[i] for i in order), rank[owner]
    return group_by_owner(owner, len(names)), names


def describe(partition: Partition, table: TokenTable) -> dict[str, int | float]:
    """Returns statistics of a population: clients, rows, tokens, and rows that did not fit.

    Keys: `clients`, `examples`, `examples_min`, `examples_median`, `examples_max` (per client),
    `tokens` (in the clients' rows, prompts included), `max_length`, and the numbers of rows that
    were `truncated` or `dropped` to fit `max_length`.
    """
    sizes = np.diff(partition.offsets)
    return {
        "clients": len(sizes),
        "examples": len(partition.indices),
        "examples_min": int(sizes.min()),
        "examples_median": float(np.median(sizes)),
        "examples_max": int(sizes.max()),
        "tokens": int(table.length[partition.indices].sum(dtype=np.int64)),
        "max_length": table.max_length,
        "truncated": table.fit.num_truncated,
        "dropped": table.fit.num_dropped,
    }


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Returns a sort key that compares numbers within names by their value."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def group_by_owner(owner: np.ndarray, num_clients: int) -> Partition:
    """Returns the partition with the given owner of each row; rows of owner -1 are left out."""
    held = np.flatnonzero(owner >= 0)
    offsets = np.zeros(num_clients + 1, np.int64)
    np.cumsum(np.bincount(owner[held], minlength=num_clients), out=offsets[1:])
    return Partition(offsets, held[np.argsort(owner[held], kind="stable")])


def owners(partition: Partition, num_rows: int) -> np.ndarray:
    """Returns the client that holds each row, `[num_rows]` int64; -1 for rows of no client."""
    owner = np.full(num_rows, -1, np.int64)
    sizes = np.diff(partition.offsets)
    owner[partition.indices] = np.repeat(np.arange(len(sizes)), sizes)
    return owner


def equal_sizes(num_rows: int, num_clients: int) -> np.ndarray:
    """Returns how many rows each client gets, `[N]`, equal to within one row."""
    return np.diff(np.arange(num_clients + 1) * num_rows // num_clients)


def apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Returns whole numbers in proportion to `weights` with sum `total`, by largest remainders.

    Args:
      total: what is divided.
      weights: `[n]`, not negative; their sum may be 0 only if `total` is.

    >>> apportion(5, np.array([1.0, 1.0, 2.0])).tolist()
    [1, 1, 3]
    """
    shares = total * np.asarray(weights, np.float64) / max(np.sum(weights), 1e-300)
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(counts - shares, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def check_num_clients(num_clients: int, num_rows: int) -> None:
    """Raises if there are no clients, or more clients than rows."""
    if not 1 <= num_clients <= num_rows:
        raise ValueError(
            f"`num_clients` must be in [1, number of rows = {num_rows}], got {num_clients}; "
            "each client needs at least one row"
        )
