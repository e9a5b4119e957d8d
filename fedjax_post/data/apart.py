"""Held-out clients: a share of the clients never trains, and shows what others can expect.

Yuan, Morningstar, Ning, Singhal, "What Do We Mean by Generalization in Federated Learning?",
ICLR 2022, arXiv:2110.14216. What a model loses from the training clients' rows to other rows of the
same clients is their out-of-sample gap; what it loses from there to rows of clients that did not
take part is the participation gap.
"""

from typing import NamedTuple

import numpy as np

from fedjax_post.data.partition import Partition


class Apart(NamedTuple):
    """Clients that never train, and the rows of the clients' table that each of them holds."""

    partition: Partition
    names: tuple[str, ...]


class Parted(NamedTuple):
    """The clients that train, numbered anew, and those that do not."""

    partition: Partition
    names: tuple[str, ...]
    heldout: Partition | None  # of the held-out rows that are kept, numbered anew
    kept: np.ndarray | None  # the held-out rows that no held-out client holds; None: all
    apart: Apart | None  # None if all clients train


def set_apart(
    partition: Partition,
    heldout: Partition | None,
    *,
    names: tuple[str, ...],
    num_heldout: int | None,
    share: float,
    seed: int = 0,
) -> Parted:
    """Returns the clients with a share of them held out, drawn at random.

    Held-out rows of held-out clients are left out, so that the others measure how well a model
    serves the clients that train.

    Args:
      partition: of the rows to train on.
      heldout: of the held-out rows, among the same clients; None: nobody holds them.
      names: of the clients; () where they are only numbered.
      num_heldout: number of held-out rows; None: all are kept, since no row names its client and
        `heldout` only deals them out.
      share: of the clients that are held out, in [0, 1); 0: none.
      seed: equal seeds hold out the same clients.

    Raises:
      ValueError: if no client would be held out, or none would train, or the held-out clients hold
        all held-out rows.

    Example:
      >>> halves = Partition(np.array([0, 1, 3]), np.array([2, 0, 1]))
      >>> parted = set_apart(halves, None, names=("ann", "bob"), num_heldout=None, share=0.5)
      >>> len(parted.names), sorted(parted.names + parted.apart.names)
      (1, ['ann', 'bob'])
    """
    if not share:
        return Parted(partition, names, heldout, None, None)
    num_clients = len(partition.offsets) - 1
    order = np.random.default_rng((seed, 5)).permutation(num_clients)
    number = num_apart(num_clients, share)
    out, rest = np.sort(order[:number]), np.sort(order[number:])
    names = names or tuple(map(str, range(num_clients)))  # those that train get other numbers
    named = lambda clients: tuple(names[i] for i in clients.tolist())
    kept = None
    if heldout is not None and num_heldout is not None:
        kept = np.setdiff1d(np.arange(num_heldout), _take(heldout, out).indices)
        if not len(kept):
            raise ValueError(
                f"heldout_clients={share:g}: all {num_heldout} held-out rows are of held-out "
                "clients; use a lower share, or hold out more rows"
            )
        offsets, indices = _take(heldout, rest)
        heldout = Partition(offsets, np.searchsorted(kept, indices))
    elif heldout is not None:
        heldout = _take(heldout, rest)
    apart = Apart(_take(partition, out), named(out))
    return Parted(_take(partition, rest), named(rest), heldout, kept, apart)


def num_apart(num_clients: int, share: float) -> int:
    """Returns the number of held-out clients.

    Args:
      num_clients: all clients.
      share: of the clients that are held out, in [0, 1); 0: none.

    Raises:
      ValueError: if no client would be held out, or none would train.

    >>> num_apart(10, 0.25), num_apart(10, 0.0)
    (3, 0)
    """
    number = int(share * num_clients + 0.5)
    if share and not 0 < number < num_clients:
        which = "holds out none" if not number else "leaves none to train"
        remedy = f"use between {1 / num_clients:.2g} and {(num_clients - 1) / num_clients:.2g}"
        raise ValueError(
            f"heldout_clients={share:g} {which} of {num_clients} clients; "
            + (remedy if num_clients > 1 else "leave it out")
        )
    return number


def _take(partition: Partition, client_ids: np.ndarray) -> Partition:
    """Returns the partition of some clients, in the order of their ids."""
    first, last = partition.offsets[client_ids], partition.offsets[client_ids + 1]
    rows = [partition.indices[a:b] for a, b in zip(first, last, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(last - first)])
    return Partition(offsets.astype(np.int64), np.concatenate(rows))
