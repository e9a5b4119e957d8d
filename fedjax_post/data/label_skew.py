"""Partitions by labels: each client has a mixture of its own, a few labels, or a single one.

Any grouping of the rows may stand for the labels, such as clusters of similar texts.
"""

import numpy as np

from fedjax_post.data.partition import (
    Partition,
    Rows,
    check_num_clients,
    equal_sizes,
    group_by_owner,
)


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
    check_alpha(alpha)
    check_num_clients(num_clients, len(labels))
    rng = np.random.default_rng(seed)
    label_of_row = np.unique(np.asarray(labels), return_inverse=True)[1]
    left = np.bincount(label_of_row)
    prior = left / left.sum()
    counts = np.empty((num_clients, len(left)), np.int64)
    for k, size in enumerate(equal_sizes(len(labels), num_clients)):
        counts[k] = _draw(rng.dirichlet(alpha * prior), left, size, rng)
        left -= counts[k]
    owner = np.empty(len(labels), np.int64)
    for label in range(len(left)):
        rows = rng.permutation(np.flatnonzero(label_of_row == label))
        owner[rows] = np.repeat(np.arange(num_clients), counts[:, label])
    return group_by_owner(owner, num_clients)


def shards(labels: Rows, num_clients: int, *, per_client: int, seed: int = 0) -> Partition:
    """Returns a partition in which each client holds a few runs of rows sorted by label.

    McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep
    Networks from Decentralized Data", AISTATS 2017, arXiv:1602.05629, section 3 ("pathological
    non-IID"): the rows are sorted by label and cut into N * s shards of equal size, to within one
    row, and each client receives s of them at random. A shard that spans the border between two
    labels has both, so all shards together have at most N * s + (number of labels) - 1 pairs of
    a shard and a label; where every border of labels is one of shards, each client has at most
    s labels.

    Args:
      labels: as for `dirichlet`. Rows of one label are shuffled.
      num_clients: N.
      per_client: s, shards of each client.
      seed: equal seeds give equal partitions.

    Raises:
      ValueError: if there are more shards than rows or fewer shards than labels, and as `iid`.

    Example:
      >>> labels = np.repeat([0, 1, 2, 3], 6)
      >>> partition = shards(labels, 4, per_client=1)
      >>> sorted(set(labels[partition.indices[:6]].tolist())) in ([0], [1], [2], [3])
      True
    """
    check_per_client(per_client)
    check_num_clients(num_clients, len(labels))
    label_of_row = np.unique(np.asarray(labels), return_inverse=True)[1]
    num_shards, num_labels = num_clients * per_client, label_of_row.max() + 1
    what = f"shards({per_client}) cuts {num_shards} shards for {num_clients} clients"
    if num_shards > len(labels):
        raise ValueError(
            f"{what}, but there are {len(labels)} rows; give fewer clients or fewer shards a client"
        )
    if num_shards < num_labels:
        raise ValueError(
            f"{what}, fewer than the {num_labels} labels, so that a client would hold more labels "
            "than shards; give more clients or more shards a client"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(label_of_row[shuffled], kind="stable")]
    client_of_shard = rng.permutation(num_shards) // per_client
    owner = np.empty(len(labels), np.int64)
    owner[by_label] = np.repeat(client_of_shard, equal_sizes(len(labels), num_shards))
    return group_by_owner(owner, num_clients)


def single_label(labels: Rows, num_clients: int | None = None, *, seed: int = 0) -> Partition:
    """Returns a partition in which each client holds rows of one label, such as one language.

    Each label has one client. Further clients are added one by one to the label that then has the
    most rows for each of its clients (D'Hondt's rule), so that the smallest client is as large as
    possible. Rows of a label are divided among its clients at random, equally to within one row.
    Clients are numbered label by label, in the order of the labels.

    Args:
      labels: as for `dirichlet`.
      num_clients: N; None for one client a label.
      seed: equal seeds give equal partitions.

    Raises:
      ValueError: if there are fewer clients than labels, and as `iid`.

    Example:
      >>> partition = single_label(["en"] * 6 + ["te"] * 2, 4)
      >>> partition.offsets.tolist(), partition.indices[-2:].tolist()
      ([0, 2, 4, 6, 8], [6, 7])
    """
    label_of_row = np.unique(np.asarray(labels), return_inverse=True)[1]
    sizes = np.bincount(label_of_row)
    num_clients = len(sizes) if num_clients is None else num_clients
    check_num_clients(num_clients, len(labels))
    if num_clients < len(sizes):
        raise ValueError(
            f"num_clients={num_clients} is less than the {len(sizes)} labels or languages, and "
            f"each client holds rows of one; give at least {len(sizes)}"
        )
    rng = np.random.default_rng(seed)
    clients = np.ones(len(sizes), np.int64)
    for _ in range(num_clients - len(sizes)):
        clients[np.argmax(sizes / (clients + 1))] += 1
    first = np.cumsum(clients) - clients
    owner = np.empty(len(labels), np.int64)
    for label, size in enumerate(sizes):
        shares = first[label] + np.arange(size) % clients[label]
        owner[rng.permutation(np.flatnonzero(label_of_row == label))] = shares
    return group_by_owner(owner, num_clients)


def check_alpha(alpha: float) -> None:
    """Raises for a concentration that is not positive and finite."""
    if not 0 < alpha < np.inf:
        raise ValueError(
            f"alpha must be positive and finite, got {alpha}; use partition=iid for no skew"
        )


def check_per_client(per_client: int) -> None:
    """Raises if a client would hold no shard, or a part of one."""
    if not isinstance(per_client, int) or per_client < 1:
        raise ValueError(f"per_client must be a whole number of at least 1, got {per_client}")


def _draw(mixture: np.ndarray, left: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how many of the remaining rows of each label a client of this size takes."""
    taken = np.zeros_like(left)
    while (missing := size - taken.sum()) > 0:
        # The floor matters only once all labels in the client's mixture are used up.
        share = np.where(left > taken, np.maximum(mixture, 1e-300), 0.0)
        taken += np.minimum(rng.multinomial(missing, share / share.sum()), left - taken)
    return taken
