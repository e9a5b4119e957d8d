"""Who holds what: the rows, tokens and groups of rows of each client."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_post.data.load import Loaded
from fedjax_post.data.partition import owners

_MOST_GROUPS = 20  # further labels are counted as one group
_LENGTHS = 5  # groups of rows by length


class Holdings(NamedTuple):
    """What each client holds."""

    partition: str  # the rule with its settings
    by: str  # what the groups are: label, clusters or length
    groups: tuple[str, ...]  # their names
    names: tuple[str, ...]  # of the clients
    counts: np.ndarray  # [N, G], int64, rows to train on
    tokens: np.ndarray  # [N], int64, in the rows to train on, prompts included
    heldout: np.ndarray  # [N], int64, held-out rows that are divided as the rows to train on

    def content(self, most_clients: int = 2_000, *, seed: int = 0) -> dict[str, Any]:
        """Returns the holdings as JSON holds them, for the functions of `report.holdings`.

        Args:
          most_clients: of more clients, as many are chosen at random.
          seed: equal seeds choose equal clients.
        """
        clients = len(self.names)
        chosen = np.arange(clients)
        if clients > most_clients:
            chosen = np.sort(np.random.default_rng(seed).permutation(clients)[:most_clients])
        return {
            "partition": self.partition,
            "by": self.by,
            "clients": clients,
            "rows": int(self.counts.sum()),
            "groups": list(self.groups),
            "names": [self.names[i] for i in chosen],
            "counts": self.counts[chosen].tolist(),
            "tokens": self.tokens[chosen].tolist(),
            "heldout": self.heldout[chosen].tolist(),
        }


def holdings(loaded: Loaded) -> Holdings:
    """Returns who holds what.

    Rows are grouped by clusters where the rule has made some, by length where the rule is `length`
    or rows have no label, and otherwise by label. Of more than 20 labels, the rarest are one group.

    Args:
      loaded: as returned by `load_clients` or `load_pairs`.
    """
    clients = getattr(loaded.clients, "clients", loaded.clients)  # without their ranks
    table, partition = clients.table, clients.partition
    owner = owners(partition, len(table.length))
    by, groups, group_of_row = _groups(loaded, table)
    counts = np.zeros((len(clients), len(groups)), np.int64)
    np.add.at(counts, (owner[owner >= 0], group_of_row[owner >= 0]), 1)
    tokens = np.zeros(len(clients), np.int64)
    np.add.at(tokens, owner[owner >= 0], table.length[owner >= 0])
    heldout = np.zeros(len(clients), np.int64)
    if loaded.heldout_partition is not None:
        heldout += np.diff(loaded.heldout_partition.offsets)
    names = loaded.names or tuple(map(str, range(len(clients))))
    return Holdings(loaded.report["partition"], by, groups, names, counts, tokens, heldout)


def _groups(loaded: Loaded, table: Any) -> tuple[str, tuple[str, ...], np.ndarray]:
    """Returns what groups rows, the groups' names, and the group of each row."""
    if loaded.clusters is not None:
        names = tuple(f"cluster {i}" for i in range(loaded.clusters.max() + 1))
        return "clusters", names, loaded.clusters
    if table.label is None or loaded.report["partition"].startswith("length"):
        cuts = np.quantile(table.length, np.arange(1, _LENGTHS) / _LENGTHS, method="lower")
        cuts = np.unique(cuts[cuts < table.length.max()])
        ends = (*cuts.tolist(), int(table.length.max()))
        starts = (int(table.length.min()), *(cuts + 1).tolist())
        names = tuple(f"{a} to {b} tokens" for a, b in zip(starts, ends, strict=True))
        return "length", names, np.searchsorted(cuts, table.length)
    found, codes, sizes = np.unique(table.label, return_inverse=True, return_counts=True)
    if len(found) <= _MOST_GROUPS:
        return "label", tuple(map(str, found)), codes
    frequent = np.sort(np.argsort(-sizes, kind="stable")[: _MOST_GROUPS - 1])
    code = np.full(len(found), len(frequent))
    code[frequent] = np.arange(len(frequent))
    rest = f"{len(found) - len(frequent)} others"
    return "label", (*map(str, found[frequent]), rest), code[codes]
