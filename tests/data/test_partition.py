"""Laws of partitions: every row has one owner, every client a row, and skew is as asked."""

import time

import numpy as np
import pytest

from fedjax_post.data.label_skew import dirichlet
from fedjax_post.data.partition import iid, natural

LABELS = np.repeat(["a", "b", "c", "d"], [40, 30, 20, 10])


def holdings(partition):
    return np.split(partition.indices, partition.offsets[1:-1])


def label_shares(partition, labels):
    """[clients, labels], share of each label among a client's rows."""
    codes = np.unique(labels, return_inverse=True)[1]
    counts = [np.bincount(codes[rows], minlength=codes.max() + 1) for rows in holdings(partition)]
    return np.array([count / count.sum() for count in counts])


@pytest.mark.parametrize(
    "partition",
    [
        iid(100, 7),
        iid(5, 5),
        dirichlet(LABELS, 7, alpha=0.1),
        dirichlet(LABELS, 100, alpha=100.0),
        natural(LABELS)[0],
    ],
)
def test_every_row_has_one_owner_and_every_client_a_row(partition):
    rows = partition.indices
    assert sorted(rows.tolist()) == list(range(len(rows)))
    assert all(len(held) and (np.diff(held) > 0).all() for held in holdings(partition))
    assert partition.offsets.dtype == partition.indices.dtype == np.int64


@pytest.mark.parametrize("make", [lambda n: iid(100, n), lambda n: dirichlet(LABELS, n, alpha=0.1)])
@pytest.mark.parametrize("num_clients", [1, 7, 100])
def test_clients_are_equal_to_within_one_row(make, num_clients):
    sizes = np.diff(make(num_clients).offsets)
    assert len(sizes) == num_clients
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    "make", [lambda s: iid(100, 7, seed=s), lambda s: dirichlet(LABELS, 7, alpha=1.0, seed=s)]
)
def test_the_seed_decides(make):
    np.testing.assert_array_equal(make(3).indices, make(3).indices)
    assert not np.array_equal(make(3).indices, make(4).indices)


def test_small_alpha_gives_one_label_a_client():
    labels = np.arange(4000) % 4
    largest = label_shares(dirichlet(labels, 40, alpha=1e-3), labels).max(axis=1)
    assert np.median(largest) > 0.99


def test_large_alpha_gives_everyone_the_same_mixture():
    labels = np.repeat([0, 1, 2, 3], [1600, 1200, 800, 400])
    shares = label_shares(dirichlet(labels, 4, alpha=1e6), labels)
    # 1000 rows a client: 4 standard deviations of a share are at most 0.063.
    np.testing.assert_allclose(shares, np.tile([0.4, 0.3, 0.2, 0.1], (4, 1)), atol=0.064)


def test_mixtures_vary_as_dirichlet_does():
    labels = np.arange(40_000) % 2
    share = label_shares(dirichlet(labels, 400, alpha=2.0), labels)[:300, 0]
    # Beta(1, 1) has variance 1/12; 100 rows a client add at most 1/600.
    assert abs(share.var() - (1 / 12 + 1 / 600)) < 0.015


@pytest.mark.parametrize("alpha", [1e-300, 1e-5, 1e12])
def test_extreme_alpha_still_gives_everyone_a_row(alpha):
    assert np.diff(dirichlet(LABELS, 50, alpha=alpha).offsets).min() == 2


def test_natural_clients_are_in_natural_order():
    partition, names = natural(["c10", "c9", "c10", "b", "c9"])
    assert names == ("b", "c9", "c10")
    assert [held.tolist() for held in holdings(partition)] == [[3], [1, 4], [0, 2]]


def test_natural_clients_may_be_numbers():
    partition, names = natural(np.array([10, 9, 10]))
    assert names == ("9", "10")
    assert partition.indices.tolist() == [1, 0, 2]


@pytest.mark.parametrize("num_clients", [0, -1, 101])
def test_more_clients_than_rows_are_refused(num_clients):
    message = rf"`num_clients` must be in \[1, number of rows = 100\], got {num_clients}"
    with pytest.raises(ValueError, match=message):
        iid(100, num_clients)
    with pytest.raises(ValueError, match=message):
        dirichlet(LABELS, num_clients, alpha=1.0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_must_be_positive_and_finite(alpha):
    with pytest.raises(ValueError, match="`alpha` must be positive and finite, got"):
        dirichlet(LABELS, 4, alpha=alpha)


def test_a_million_clients_take_seconds_and_two_arrays():
    start = time.perf_counter()
    partition = iid(1_000_000, 1_000_000)
    assert time.perf_counter() - start < 2.0
    assert sum(array.nbytes for array in partition) == 16_000_008
