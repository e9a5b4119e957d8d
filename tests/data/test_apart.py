"""Held-out clients: who is held out, and what becomes of rows, numbers and names."""

from itertools import pairwise

import numpy as np
import pytest

from fedjax_post.data.apart import num_apart, set_apart
from fedjax_post.data.partition import Partition

SIZES, HELD = [3, 1, 2, 4, 2], [2, 0, 1, 2, 1]
NAMES = ("ann", "bob", "cid", "dan", "eve")


def partition_of(sizes, num_rows, seed):
    rows = np.random.default_rng(seed).permutation(num_rows)[: sum(sizes)]
    offsets = np.cumsum([0, *sizes])
    parts = [np.sort(rows[a:b]) for a, b in pairwise(offsets)]
    return Partition(offsets, np.concatenate(parts))


def rows_of(partition):
    offsets, indices = partition
    return [indices[a:b].tolist() for a, b in pairwise(offsets)]


PARTITION, HELDOUT = partition_of(SIZES, 12, seed=0), partition_of(HELD, 8, seed=1)


def parted(share=0.4, seed=0, names=NAMES, heldout=HELDOUT, num_heldout=8):
    given = {"names": names, "num_heldout": num_heldout, "share": share, "seed": seed}
    return set_apart(PARTITION, heldout, **given)


def test_every_client_keeps_its_name_and_its_rows():
    found = parted()
    assert (len(found.names), len(found.apart.names)) == (3, 2)
    pairs = dict(zip(found.names, rows_of(found.partition), strict=True))
    pairs |= dict(zip(found.apart.names, rows_of(found.apart.partition), strict=True))
    assert pairs == dict(zip(NAMES, rows_of(PARTITION), strict=True))


def test_held_out_rows_of_held_out_clients_are_left_out():
    found = parted()
    before = dict(zip(NAMES, rows_of(HELDOUT), strict=True))
    gone = sorted(row for name in found.apart.names for row in before[name])
    assert found.kept.tolist() == [row for row in range(8) if row not in gone]
    after = [found.kept[rows].tolist() for rows in rows_of(found.heldout)]
    assert after == [before[name] for name in found.names]


def test_held_out_rows_that_were_only_dealt_out_are_all_kept():
    found = parted(num_heldout=None)
    assert found.kept is None
    before = dict(zip(NAMES, rows_of(HELDOUT), strict=True))
    assert rows_of(found.heldout) == [before[name] for name in found.names]


def test_clients_without_names_keep_their_numbers():
    found = parted(names=(), heldout=None)
    assert sorted(found.names + found.apart.names) == ["0", "1", "2", "3", "4"]
    assert found.heldout is None
    assert found.kept is None


def test_a_share_of_zero_changes_nothing():
    assert parted(0.0) == (PARTITION, NAMES, HELDOUT, None, None)


def test_the_seed_decides_who_is_held_out():
    drawn = [parted(seed=seed).apart.names for seed in range(20)]
    assert drawn[0] == parted().apart.names
    assert len(set(drawn)) > 5


def test_clients_that_train_keep_some_held_out_row():
    only = Partition(np.array([0, 0, 0, 0, 8, 8]), np.arange(8))
    seed = next(seed for seed in range(50) if "dan" in parted(seed=seed).apart.names)
    with pytest.raises(ValueError, match="heldout_clients=0.4: all 8 held-out rows"):
        parted(seed=seed, heldout=only)


@pytest.mark.parametrize(
    ("num", "share", "message"),
    [
        (4, 0.1, "heldout_clients=0.1 holds out none of 4 clients; use between 0.25 and 0.75"),
        (4, 0.9, "heldout_clients=0.9 leaves none to train of 4 clients; use between"),
        (1, 0.2, "heldout_clients=0.2 holds out none of 1 clients; leave it out"),
    ],
)
def test_some_clients_are_held_out_and_some_train(num, share, message):
    with pytest.raises(ValueError, match=message):
        num_apart(num, share)
