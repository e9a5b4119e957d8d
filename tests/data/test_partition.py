"""Laws of partitions: every row has one owner, every client a row, and skew is as asked."""

import hashlib
import itertools
import time

import numpy as np
import pytest

from fedjax_post.data.label_skew import dirichlet, shards, single_label
from fedjax_post.data.lengths import by_length
from fedjax_post.data.partition import apportion, iid, natural
from fedjax_post.data.sizes import quantity

LABELS = np.repeat(["a", "b", "c", "d"], [40, 30, 20, 10])
LENGTHS = np.random.default_rng(0).integers(3, 60, 100)


def holdings(partition):
    return np.split(partition.indices, partition.offsets[1:-1])


def hash_of(partition):
    return hashlib.sha256(b"".join(array.tobytes() for array in partition)).hexdigest()[:16]


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
        quantity(100, 7, law="lognormal", skew=2.0),
        quantity(100, 100, law="power_law"),
        quantity(100, 60, law="poisson"),
        shards(LABELS, 7, per_client=3),
        single_label(LABELS, 9),
        single_label(LABELS, 100),
        by_length(LENGTHS, 7, skew=0.5),
    ],
)
def test_every_row_has_one_owner_and_every_client_a_row(partition):
    rows = partition.indices
    assert sorted(rows.tolist()) == list(range(len(rows)))
    assert all(len(held) and (np.diff(held) > 0).all() for held in holdings(partition))
    assert partition.offsets.dtype == partition.indices.dtype == np.int64


@pytest.mark.parametrize(
    "make",
    [
        lambda n: iid(100, n),
        lambda n: dirichlet(LABELS, n, alpha=0.1),
        lambda n: quantity(100, n, skew=0.0),
        lambda n: quantity(100, n, law="power_law", skew=0.0),
        lambda n: by_length(LENGTHS, n),
    ],
)
@pytest.mark.parametrize("num_clients", [1, 7, 100])
def test_clients_are_equal_to_within_one_row(make, num_clients):
    sizes = np.diff(make(num_clients).offsets)
    assert len(sizes) == num_clients
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda s: iid(100, 7, seed=s),
        lambda s: dirichlet(LABELS, 7, alpha=1.0, seed=s),
        lambda s: quantity(100, 7, law="lognormal", seed=s),
        lambda s: quantity(100, 7, law="power_law", seed=s),
        lambda s: quantity(100, 7, law="poisson", seed=s),
        lambda s: shards(LABELS, 7, per_client=2, seed=s),
        lambda s: single_label(LABELS, 7, seed=s),
        lambda s: by_length(LENGTHS, 7, seed=s),
    ],
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


def test_earlier_seeds_give_the_partitions_that_they_gave():
    """Golden hashes of version 0.1.0, so that published runs can be repeated."""
    assert hash_of(iid(100, 7, seed=3)) == "367c7c923d49d640"
    assert hash_of(iid(5000, 100)) == "e1856c55c1979afd"
    assert hash_of(dirichlet(LABELS, 7, alpha=0.3, seed=3)) == "f0be294fd61e3e65"
    assert hash_of(dirichlet(np.arange(5000) % 10, 100, alpha=0.1)) == "18e152d6428c7dc6"


@pytest.mark.parametrize("skew", [0.5, 2.0])
def test_lognormal_sizes_have_the_spread_of_their_law(skew):
    num_clients = 1000
    beyond = np.diff(quantity(1_000_000, num_clients, skew=skew).offsets) - 1.0
    logs = np.log(beyond[beyond >= 20])  # rounding to rows is at most 3 % of these
    if skew == 0.5:
        assert len(logs) > 0.99 * num_clients
        assert abs(logs.std() - skew) < 4 * skew / np.sqrt(2 * num_clients)
    # The median is exp(-skew^2 / 2) of the mean; its logarithm deviates by 1.25 skew / sqrt(N).
    middle = np.log(np.median(beyond) / beyond.mean())
    assert abs(middle + skew**2 / 2) < 8 * skew / np.sqrt(num_clients)


def test_power_law_sizes_are_the_ranks_to_the_power():
    sizes = np.diff(quantity(10_050, 50, law="power_law", skew=1.5).offsets)
    expected = 1 + 10_000 * np.arange(1, 51) ** -1.5 / (np.arange(1, 51) ** -1.5).sum()
    assert np.abs(np.sort(sizes)[::-1] - expected).max() < 1
    assert not (np.diff(sizes) <= 0).all()  # large clients have any number


def test_poisson_sizes_vary_as_poisson_does():
    num_clients, mean = 2000, 15
    beyond = np.diff(quantity(num_clients * (mean + 1), num_clients, law="poisson").offsets) - 1
    statistic = ((beyond - mean) ** 2 / mean).sum()  # chi-square with N - 1 degrees of freedom
    assert abs(statistic - (num_clients - 1)) < 4 * np.sqrt(2 * num_clients)


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_a_client_has_at_most_as_many_labels_as_shards(per_client):
    labels = np.arange(600) % 10  # 60 of each, and a shard holds 60, 30 or 12 rows
    held = holdings(shards(labels, 10, per_client=per_client))
    assert max(len(set(labels[rows])) for rows in held) <= per_client
    assert {len(rows) for rows in held} == {60}


def test_a_shard_has_a_second_label_only_at_a_border():
    pairs = [len(set(LABELS[rows])) for rows in holdings(shards(LABELS, 8, per_client=1))]
    assert sum(pairs) <= 8 + 3
    assert max(pairs) == 2


def test_clients_of_one_label_are_as_many_as_its_rows_ask_for():
    held = holdings(single_label(LABELS, 10))
    assert ["".join(set(LABELS[rows])) for rows in held] == list("aaaabbbccd")
    assert {len(rows) for rows in held} == {10}
    assert len(holdings(single_label(LABELS))) == 4


def test_full_skew_sorts_clients_by_length():
    held = [LENGTHS[rows] for rows in holdings(by_length(LENGTHS, 7))]
    assert all(max(one) <= min(other) for one, other in itertools.pairwise(held))


def test_skew_of_length_goes_from_none_to_full():
    lengths = np.random.default_rng(1).permutation(10_000)

    def between(skew):
        """Variance of the clients' mean lengths over that of all rows; 1 / 100 by chance."""
        means = [lengths[rows].mean() for rows in holdings(by_length(lengths, 100, skew=skew))]
        return np.var(means) / np.var(lengths)

    found = [between(skew) for skew in (0.0, 0.3, 0.6, 1.0)]
    assert abs(100 * found[0] - 1) < 4 * np.sqrt(2 / 99)
    assert found == sorted(found)
    assert found[-1] > 0.999


def test_numbers_are_apportioned_to_within_one():
    weights = np.random.default_rng(2).random(50)
    counts = apportion(1000, weights)
    assert counts.sum() == 1000
    assert np.abs(counts - 1000 * weights / weights.sum()).max() < 1


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
    with pytest.raises(ValueError, match=message):
        quantity(100, num_clients)
    with pytest.raises(ValueError, match=message):
        by_length(LENGTHS, num_clients)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: shards(LABELS, 40, per_client=3),
            "120 shards.*there are 100 rows; give fewer",
        ),
        (lambda: shards(LABELS, 3, per_client=1), "3 shards.*fewer than the 4 labels.*give more"),
        (lambda: shards(LABELS, 3, per_client=0), "per_client must be .* at least 1, got 0"),
        (lambda: shards(LABELS, 3, per_client=1.5), "per_client must be a whole number"),
        (lambda: single_label(LABELS, 3), "less than the 4 labels or languages.*at least 4"),
        (lambda: quantity(100, 3, law="normal"), "law must be one of lognormal, power_law, poi"),
        (lambda: quantity(100, 3, skew=-1), "skew must be finite and at least 0, got -1"),
        (
            lambda: by_length(LENGTHS, 3, skew=1.1),
            r"skew of lengths must be in \[0, 1\]",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_must_be_positive_and_finite(alpha):
    with pytest.raises(ValueError, match="alpha must be positive and finite, got"):
        dirichlet(LABELS, 4, alpha=alpha)


def test_a_million_clients_take_seconds_and_two_arrays():
    start = time.perf_counter()
    partition = iid(1_000_000, 1_000_000)
    assert time.perf_counter() - start < 2.0
    assert sum(array.nbytes for array in partition) == 16_000_008
