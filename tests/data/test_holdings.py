"""Laws of who holds what: each row is counted once, in the group that it belongs to."""

import json

import numpy as np
import pytest

from fedjax_post.data import Population, load_clients, load_pairs, rules
from fedjax_post.data.holdings import holdings
from fedjax_post.report.drawing import BLUE
from fedjax_post.report.holdings import draw_holdings, holdings_table

VISITS = {"batch_size": 1, "local_steps": 1}


def rows_of(number, **columns):
    return [
        {"prompt": "p" * (1 + i % 9), "response": "r", **{k: f(i) for k, f in columns.items()}}
        for i in range(number)
    ]


def load(tokenizer, rows, rule, num_clients=4):
    population = Population(rule, num_clients=num_clients, heldout_fraction=0.2)
    return load_clients(rows, tokenizer, population=population, **VISITS)


@pytest.fixture
def labelled(tokenizer):
    return load(tokenizer, rows_of(100, label=lambda i: f"l{i % 3}"), rules.dirichlet(0.3))


def test_every_row_is_counted_once(labelled):
    found, table = holdings(labelled), labelled.clients.table
    assert found.by == "label"
    assert found.groups == ("l0", "l1", "l2")
    np.testing.assert_array_equal(
        found.counts.sum(axis=0), np.unique(table.label, return_counts=True)[1]
    )
    np.testing.assert_array_equal(
        found.counts.sum(axis=1), np.diff(labelled.clients.partition.offsets)
    )
    assert found.tokens.sum() == table.length.sum() == labelled.report["tokens"]
    assert found.heldout.sum() == 20


def test_rare_labels_are_one_group(tokenizer):
    rows = rows_of(200, label=lambda i: f"l{i % 50}" if i % 2 else "often")
    found = holdings(load(tokenizer, rows, "iid"))
    assert len(found.groups) == 20
    assert "often" in found.groups
    assert found.groups[-1] == "7 others"  # of 26 labels, 19 have a group of their own
    assert found.counts.sum() == 160


@pytest.mark.parametrize(
    ("rule", "columns"), [("iid", {}), (rules.length(), {"label": lambda i: i % 2})]
)
def test_rows_without_labels_are_grouped_by_length(tokenizer, rule, columns):
    loaded = load(tokenizer, rows_of(100, **columns), rule)
    found, lengths = holdings(loaded), loaded.clients.table.length
    assert found.by == "length"
    ranges = [tuple(map(int, name.removesuffix(" tokens").split(" to "))) for name in found.groups]
    expected = [np.sum((low <= lengths) & (lengths <= high)) for low, high in ranges]
    assert found.counts.sum(axis=0).tolist() == expected
    assert sum(expected) == 80


def test_pairs_have_holdings_too(tokenizer):
    rows = [row | {"rejected": "x", "client": f"c{i % 2}"} for i, row in enumerate(rows_of(10))]
    population = Population(heldout_fraction=0.2)
    found = holdings(load_pairs(rows, tokenizer, population=population, **VISITS))
    assert found.names == ("c0", "c1")
    assert found.counts.sum() == 8
    assert found.heldout.sum() == 2


def test_of_many_clients_some_are_shown_and_all_are_counted(labelled):
    content = holdings(labelled).content(3, seed=1)
    assert content["clients"] == 4
    assert len(content["names"]) == len(content["counts"]) == 3
    assert content["rows"] == 80
    assert json.loads(json.dumps(content)) == content


def test_the_table_has_the_numbers(labelled):
    found = holdings(labelled)
    lines = [line.split() for line in holdings_table(found.content()).splitlines()]
    assert lines[0] == ["client", "rows", "tokens", "held", "out", "l0", "l1", "l2"]
    for line, counts, tokens in zip(lines[2:], found.counts, found.tokens, strict=True):
        assert line[1:3] == [str(counts.sum()), f"{tokens:,}"]
        assert line[4:] == [str(count) for count in counts]
    assert holdings_table(found.content(3)).endswith("and 1 more clients")


@pytest.mark.parametrize("num_clients", [1, 30, 51, 80])
def test_any_number_of_clients_is_drawn(tokenizer, tmp_path, num_clients):
    from matplotlib.image import imread

    loaded = load(tokenizer, rows_of(100, label=lambda i: i % 3), "iid", num_clients)
    path = draw_holdings(holdings(loaded).content(), tmp_path / "partition.png")
    drawn = imread(path)[..., :3]
    assert 400 < drawn.shape[1] < 1600
    colours = np.unique((drawn.reshape(-1, 3) * 255).astype(int), axis=0)
    assert len(colours) > 20
    blue = [int(BLUE[i : i + 2], 16) for i in (1, 3, 5)]  # the first label's bars
    assert (colours == blue).all(axis=1).any() == (num_clients <= 50)
