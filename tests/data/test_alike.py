"""Laws of held-out rows: each client's are divided as its rows to train on are."""

import datasets
import numpy as np
import pytest

from fedjax_post.data import Population, load_clients, rules
from fedjax_post.data.alike import divide_alike
from fedjax_post.data.label_skew import dirichlet, shards
from fedjax_post.data.partition import iid, owners
from fedjax_post.data.splits import Splits

NUM_CLIENTS = 20


def counts_of(partition, groups, num_groups):
    """[clients, groups], number of rows."""
    counts = np.zeros((len(partition.offsets) - 1, num_groups), int)
    owner = owners(partition, len(groups))
    np.add.at(counts, (owner[owner >= 0], groups[owner >= 0]), 1)
    return counts


@pytest.fixture(params=[lambda x: dirichlet(x, NUM_CLIENTS, alpha=0.3),
                        lambda x: shards(x, NUM_CLIENTS, per_client=2),
                        lambda x: iid(len(x), NUM_CLIENTS)],
                ids=["dirichlet", "shards", "iid"])  # fmt: skip
def divided(request):
    """Counts of the rows to train on and of the held-out rows, and the shares of the latter."""
    rng = np.random.default_rng(5)
    rows, heldout = rng.integers(0, 10, 4000), rng.integers(0, 10, 1500)
    partition = request.param(rows)
    alike = divide_alike(partition, rows, heldout)
    own = counts_of(partition, rows, 10)
    return own, counts_of(alike, heldout, 10), own / own.sum(axis=0) * np.bincount(heldout)


def test_each_share_is_exact_to_within_one_row(divided):
    _, held, shares = divided
    assert held.sum() == 1500
    assert np.abs(held - shares).max() < 1
    assert np.abs(held.sum(axis=1) - shares.sum(axis=1)).max() < 1


def test_nobody_gets_a_row_of_a_group_that_it_does_not_have(divided):
    own, held, _ = divided
    assert not held[own == 0].any()


def test_the_mixtures_of_both_agree(divided):
    own, held, _ = divided
    mixtures = [counts / counts.sum(axis=1, keepdims=True) for counts in (own, held)]
    # Labels differ in frequency by 3 standard deviations at most, 0.2, and a cell by one row in 75.
    apart = np.abs(mixtures[0] - mixtures[1]).sum(axis=1) / 2
    assert apart.max() < 0.1


def test_rows_of_unknown_groups_belong_to_nobody():
    held = divide_alike(iid(4, 2), ["a", "a", "b", "b"], ["c", "a", "d"])
    assert owners(held, 3).tolist()[::2] == [-1, -1]


def test_clients_take_turns_where_there_are_few_rows():
    held = divide_alike(iid(1000, 100), np.zeros(1000), np.zeros(50))
    assert np.bincount(np.diff(held.offsets)).tolist() == [50, 50]


def rows_of(number, **columns):
    return [
        {"prompt": f"p{i}", "response": "r" * (1 + i % 7), **{k: f(i) for k, f in columns.items()}}
        for i in range(number)
    ]


def loaded(rows, tokenizer, partition, **population):
    given = Population(partition, heldout_fraction=0.25, **population)
    return load_clients(rows, tokenizer, batch_size=1, local_steps=1, population=given)


def groups_of(loaded, name):
    """For each client, the values of a column of the tables among its two kinds of rows."""
    sides = (
        (loaded.clients.partition, getattr(loaded.clients.table, name)),
        (loaded.heldout_partition, getattr(loaded.heldout, name)),
    )
    return [
        [set(values[rows].tolist()) for rows in np.split(part.indices, part.offsets[1:-1])]
        for part, values in sides
    ]


def test_natural_clients_hold_the_rows_that_name_them(tokenizer):
    made = rows_of(80, client=lambda i: f"c{i % 5}")
    found = loaded(made, tokenizer, None, num_clients=4)
    assert found.report["heldout_by"] == "client"
    own, held = groups_of(found, "client")
    assert own == held == [{f"c{i}"} for i in range(4)]
    assert found.report["clients_with_heldout"] == 4


def test_natural_clients_have_rows_of_their_labels_where_none_names_them(tokenizer):
    found = load_clients(
        "builtin", tokenizer, batch_size=1, local_steps=1, population=Population(num_clients=6)
    )
    own, held = groups_of(found, "label")
    assert found.report["heldout_by"] == "label"
    assert all(one >= other for one, other in zip(own, held, strict=True))


def test_natural_clients_without_either_have_no_held_out_rows(tokenizer):
    splits = Splits(
        datasets.Dataset.from_list(rows_of(8, client=lambda i: f"c{i % 2}")),
        datasets.Dataset.from_list(rows_of(4)),
    )
    found = load_clients(splits, tokenizer, batch_size=1, local_steps=1)
    assert found.heldout_partition is None
    assert found.report["heldout_by"] is None


def test_a_held_out_row_needs_no_client(tokenizer):
    made = rows_of(8, client=lambda i: f"c{i % 2}")
    splits = Splits(
        *(datasets.Dataset.from_list(x) for x in (made, [*made, made[0] | {"client": None}]))
    )
    found = load_clients(splits, tokenizer, batch_size=1, local_steps=1)
    assert owners(found.heldout_partition, 9).tolist() == [0, 1] * 4 + [-1]


@pytest.mark.parametrize(
    ("rule", "by"),
    [
        (rules.iid(), "size"),
        (rules.quantity("poisson"), "size"),
        (rules.dirichlet(), "label"),
        (rules.shards(), "label"),
        (rules.language(), "label"),
        (rules.length(), "length"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_every_rule_divides_the_held_out_rows_too(tokenizer, rule, by):
    made = rows_of(240, label=lambda i: i % 4, language=lambda i: ["en", "te"][i % 2])
    found = loaded(made, tokenizer, rule, num_clients=6)
    assert found.report["heldout_by"] == by
    assert found.report["clients_with_heldout"] == 6
    assert len(found.heldout_partition.indices) == 60
    if by == "label":
        own, held = groups_of(found, "label")
        assert all(one >= other for one, other in zip(own, held, strict=True))


def test_held_out_rows_are_as_long_as_the_clients_rows(tokenizer):
    found = loaded(rows_of(400), tokenizer, rules.length(), num_clients=5)
    own, held = groups_of(found, "length")
    for one, other in zip(own, held, strict=True):
        assert min(one) <= min(other) <= max(other) <= max(one)
