"""The formal corpus as a federation: clients have skills of their own, splits share no list."""

import collections
import itertools
import re

import pytest

from fedjax_post.data import Population, Text, documents, load_clients
from fedjax_post.data.builtin import corpus, tasks

CLIENTS = 16


@pytest.fixture(scope="module")
def train():
    return [documents.client_examples(client, num_examples=200) for client in range(CLIENTS)]


@pytest.fixture(scope="module")
def heldout():
    return documents.heldout_examples(480)


def numbers_of(row):
    return re.findall(r"\d+", row["prompt"])


def test_a_client_has_the_skills_of_its_profile(train):
    for client, rows in enumerate(train):
        _, shares = tasks.client_profile(client)
        assert {row["task"] for row in rows} == set(shares)
        assert {row["client"] for row in rows} == {client}


def test_answers_are_right(train, heldout):
    for row in (*(row for rows in train for row in rows), *heldout):
        numbers = numbers_of(row)
        if row["task"] == "sort":
            assert row["response"].split() == sorted(numbers, key=int)
        if row["task"] == "next":
            assert row["response"] == " ".join(str(int(number) + 1) for number in numbers)


def test_held_out_rows_have_lists_that_no_client_has(train, heldout):
    counts = collections.Counter(row["task"] for row in heldout)
    assert dict(counts) == dict.fromkeys(tasks.TASKS, 48)
    for rows, held_out in ((itertools.chain(*train), False), (heldout, True)):
        lists = [numbers_of(row) for row in rows if row["task"] in ("sort", "next")]
        assert lists
        assert all(tasks.is_held_out(numbers) == held_out for numbers in lists)


def test_fewer_documents_are_the_first_ones(train):
    assert documents.client_examples(3, num_examples=20) == train[3][:20]
    assert documents.client_examples(3, num_examples=20, seed=1) != train[3][:20]


def test_it_is_loaded_by_name():
    found = load_clients(
        "builtin-corpus",
        corpus.build_tokenizer(),
        batch_size=2,
        local_steps=1,
        text=Text(template="{prompt}"),
        population=Population(num_clients=4),
    )
    assert len(found.clients) == 4
