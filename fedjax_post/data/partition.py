"""Partitions: which rows of a table each client holds, as two arrays.

| | sizes | use |
| --- | --- | --- |
| `iid` | equal to within one row | the reference without heterogeneity |
| `dirichlet` | equal to within one row | label skew of a chosen strength |
| `natural` | as in the data | the clients of the data set |
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
    _check_num_clients(num_clients, num_rows)
    owner = np.random.default_rng(seed).permutation(num_rows) % num_clients
    return _group_by_owner(owner, num_clients)


def dirichlet(labels: Rows, num_clients: int, *, alpha: float, seed: int = 0) -> Partition:
    """Returns a partition with label skew, in which each client has its own mixture of labels.

    Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", 2019, arXiv:1909.06335, section 3: client k draws q_k from
    Dir(alpha * p), where p holds the labels' shares in the whole data set, and then draws its
    rows without replacement according to q_k, renormalised over the labels that still have rows.
    All clients are of equal size to within one row, so none is empty. In the limit of alpha to 0
    each client has one label; in the limit of alpha to infinity this is `iid`.

    Args:
      labels: `[num_rows]`, one label for each row, of any sortable type.
      num_clients: N, at most `num_rows`.
      alpha: concentration, above 0.
      seed: equal seeds give equal partitions.

    Raises:
      ValueError: if `alpha` is not positive and finite, and as `iid`.

    Example:
      >>> labels = ["a", "b"] * 10
      >>> partition = dirichlet(labels, 4, alpha=0.1)
      >>> np.diff(partition.offsets).tolist()  # rows of each client
      [5, 5, 5, 5]
    """
    if not 0 < alpha < np.inf:
        raise ValueError(
            f"`partition_alpha` must be positive and finite, got {alpha}; "
            "use partition=iid for no skew"
        )
    _check_num_clients(num_clients, len(labels))
    rng = np.random.default_rng(seed)
    label_of_row = np.unique(np.asarray(labels), return_inverse=True)[1]
    left = np.bincount(label_of_row)
    prior = left / left.sum()
    sizes = np.diff(np.arange(num_clients + 1) * len(labels) // num_clients)
    counts = np.empty((num_clients, len(left)), np.int64)
    for k, size in enumerate(sizes):
        counts[k] = _draw(rng.dirichlet(alpha * prior), left, size, rng)
        left -= counts[k]
    owner = np.empty(len(labels), np.int64)
    for label in range(len(left)):
        rows = rng.permutation(np.flatnonzero(label_of_row == label))
        owner[rows] = np.repeat(np.arange(num_clients), counts[:, label])
    return _group_by_owner(owner, num_clients)


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
    _check_num_clients(1, len(values))
    found, owner = np.unique(np.asarray(values), return_inverse=True)
    names = tuple(map(str, found))
    if found.dtype.kind not in "iu":  # integers are in order already
        order = sorted(range(len(names)), key=lambda i: natural_key(names[i]))
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        names, owner = tuple(names[i] for i in order), rank[owner]
    return _group_by_owner(owner, len(names)), names


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


def _draw(mixture: np.ndarray, left: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how many of the remaining rows of each label a client of this size takes."""
    taken = np.zeros_like(left)
    while (missing := size - taken.sum()) > 0:
        # The floor matters only once all labels in the client's mixture are used up.
        share = np.where(left > taken, np.maximum(mixture, 1e-300), 0.0)
        taken += np.minimum(rng.multinomial(missing, share / share.sum()), left - taken)
    return taken


def _group_by_owner(owner: np.ndarray, num_clients: int) -> Partition:
    offsets = np.zeros(num_clients + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=num_clients), out=offsets[1:])
    return Partition(offsets, np.argsort(owner, kind="stable"))


def _check_num_clients(num_clients: int, num_rows: int) -> None:
    if not 1 <= num_clients <= num_rows:
        raise ValueError(
            f"`num_clients` must be in [1, number of rows = {num_rows}], got {num_clients}; "
            "each client needs at least one row"
        )
