"""Partitions by length: clients differ in how long their rows are."""

import numpy as np

from fedjax_post.data.partition import (
    Partition,
    check_num_clients,
    equal_sizes,
    group_by_owner,
)


def by_length(
    lengths: np.ndarray, num_clients: int, *, skew: float = 1.0, seed: int = 0
) -> Partition:
    """Returns a partition in which client 0 has the shortest rows and the last one the longest.

    Row i has the rank u_i in [0, 1) among all rows by length (ties in random order), and v_i in
    a random order. The rows are sorted by skew * u + (1 - skew) * v and cut into N clients of
    equal size, to within one row. With skew 1 no client has a shorter row than a client before
    it; with skew 0 this is `iid`.

    Sequence length is one of the diversities that Ye et al., "FedLLM-Bench", 2024,
    arXiv:2406.04845, find among real users; the mixture of two orders is ours.

    Args:
      lengths: `[num_rows]`, tokens of each row.
      num_clients: N, at most `num_rows`.
      skew: in [0, 1].
      seed: equal seeds give equal partitions.

    Raises:
      ValueError: if `skew` is outside [0, 1], and as `iid`.

    Example:
      >>> by_length(np.array([5, 2, 9, 3]), 2).indices.tolist()
      [1, 3, 0, 2]
    """
    check_skew(skew)
    num_rows = len(lengths)
    check_num_clients(num_clients, num_rows)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(num_rows)
    rank = np.empty(num_rows)
    rank[shuffled[np.argsort(lengths[shuffled], kind="stable")]] = np.arange(num_rows)
    order = np.argsort(skew * rank + (1 - skew) * rng.permutation(num_rows), kind="stable")
    owner = np.empty(num_rows, np.int64)
    owner[order] = np.repeat(np.arange(num_clients), equal_sizes(num_rows, num_clients))
    return group_by_owner(owner, num_clients)


def check_skew(skew: float) -> None:
    """Raises for a skew outside [0, 1]."""
    if not 0 <= skew <= 1:
        raise ValueError(f"skew of lengths must be in [0, 1], got {skew}")
