"""Held-out rows of each client: rows divided as its training rows are."""

import numpy as np

from fedjax_post.data.partition import Partition, Rows, group_by_owner, owners


def divide_alike(partition: Partition, groups: Rows, others: Rows, *, seed: int = 0) -> Partition:
    """Returns a partition of other rows in which each client has the groups of its own rows.

    If client k holds n_kg of the n_g training rows of group g, it receives h_g n_kg / n_g of the
    h_g other rows of that group, to within one row. Remainders are carried from group to group, so
    that a client's total deviates little from the sum of its shares. Where the groups are equally
    frequent among both kinds of rows, a client thus has the same mixture of groups in both.

    | other row | result |
    | --- | --- |
    | of a group of which no client has a row | belongs to no client |
    | fewer rows than clients | some clients have none |

    Args:
      partition: of the training rows among N clients.
      groups: `[num_rows]`, the group of each training row, such as its label.
      others: `[num_others]`, the group of each other row.
      seed: equal seeds give equal partitions.

    Returns:
      A partition of the other rows among the same N clients.

    Example:
      >>> training = Partition(np.array([0, 2, 4]), np.arange(4))
      >>> held = divide_alike(training, ["a", "a", "b", "b"], ["b", "a", "c", "b"])
      >>> held.offsets.tolist(), held.indices.tolist()
      ([0, 1, 3], [1, 0, 3])
    """
    rng = np.random.default_rng((seed, 3))
    num_clients = len(partition.offsets) - 1
    names, codes = np.unique(np.concatenate([groups, others]), return_inverse=True)
    mine, theirs = np.split(codes, [len(groups)])
    owner = owners(partition, len(groups))
    pairs, counts = np.unique(
        mine[owner >= 0] * num_clients + owner[owner >= 0], return_counts=True
    )
    first = np.searchsorted(pairs, np.arange(len(names) + 1) * num_clients)
    shuffled = rng.permutation(len(others))
    by_group = shuffled[np.argsort(theirs[shuffled], kind="stable")]
    sizes, holders = np.bincount(theirs, minlength=len(names)), np.diff(first)
    alone = np.full(len(names), -1)
    alone[holders == 1] = pairs[first[:-1][holders == 1]] % num_clients
    result = alone[theirs]  # -1 where no client, or more than one, has rows of the group
    due = rng.uniform(0, 1e-6, num_clients)  # clients with equal remainders are in random order
    ends = sizes.cumsum()
    for group in np.flatnonzero((sizes > 0) & (holders > 1)):
        rows = by_group[ends[group] - sizes[group] : ends[group]]
        here = slice(first[group], first[group + 1])
        clients = pairs[here] % num_clients
        result[rows] = np.repeat(clients, _share(len(rows), counts[here], due, clients))
    return group_by_owner(result, num_clients)


def _share(total: int, weights: np.ndarray, due: np.ndarray, clients: np.ndarray) -> np.ndarray:
    """Returns how many of `total` rows each of these clients gets; updates what is due to them."""
    shares = total * weights / weights.sum()
    counts = np.floor(shares).astype(np.int64)
    due[clients] += shares - counts
    favoured = np.argsort(-due[clients], kind="stable")[: total - counts.sum()]
    counts[favoured] += 1
    due[clients[favoured]] -= 1
    return counts
