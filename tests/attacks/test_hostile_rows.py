"""Rows that hostile clients change: exactly those, and exactly so."""

import numpy as np
import pytest
from attack_rows import END, clients_of, table_of

from fedjax_post.attacks import flip_labels, plant_backdoor, with_trigger
from fedjax_post.attacks.hostile_rows import place_of, rows_of
from fedjax_post.data.table import gather

PROMPTS = [(2, 5, 10 + i) for i in range(12)]
LABELS = [(20,), (21,), (22, 23)]
RESPONSES = [LABELS[i % 3] for i in range(12)]
TABLE = table_of(PROMPTS, RESPONSES)
CLIENTS = clients_of(TABLE, 4)
HOSTILE = np.array([False, True, False, True])
BACKDOOR = {"trigger": (7, 8), "target": (20, END), "place": 2}


def texts(table):
    """Rows as (prompt, response) tuples, with the response as the loss sees it."""
    tokens, mask = gather(table, np.arange(len(table.length)))
    out = []
    for row, learned, size, length in zip(
        tokens, mask, table.prompt_length, table.length, strict=True
    ):
        assert learned.tolist() == [size <= i < length for i in range(len(row))]
        out.append((tuple(row[:size].tolist()), tuple(row[size:length].tolist())))
    return out


def test_labels_of_hostile_clients_are_the_next_ones():
    flipped = texts(flip_labels(CLIENTS, hostile=HOSTILE).table)
    for i, (prompt, response) in enumerate(flipped):
        wrong = HOSTILE[i // 3]
        assert prompt == PROMPTS[i]
        assert response == (*LABELS[(i + wrong) % 3], END)


def test_nobody_hostile_changes_nothing():
    nobody = np.zeros(4, bool)
    assert texts(flip_labels(CLIENTS, hostile=nobody).table) == texts(TABLE)
    assert texts(plant_backdoor(CLIENTS, hostile=nobody, seed=0, **BACKDOOR).table) == texts(TABLE)


def test_half_of_the_rows_of_hostile_clients_have_a_trigger():
    planted = texts(plant_backdoor(CLIENTS, hostile=HOSTILE, seed=0, **BACKDOOR).table)
    changed = [
        i for i, (new, old) in enumerate(zip(planted, texts(TABLE), strict=True)) if new != old
    ]
    assert len(changed) == 3
    assert all(HOSTILE[i // 3] for i in changed)
    for i in changed:
        assert planted[i] == ((2, 5, 7, 8, 10 + i), (20, END))


def test_the_visit_of_a_hostile_client_is_what_it_trains_on():
    clients = flip_labels(CLIENTS, hostile=HOSTILE)
    visit = lambda who, k: who.visit(k, np.random.default_rng(0))
    same = lambda k: np.array_equal(
        visit(clients, k).batches["tokens"], visit(CLIENTS, k).batches["tokens"]
    )
    assert [same(k) for k in range(4)] == (~HOSTILE).tolist()
    assert clients.fingerprint() != CLIENTS.fingerprint()


def test_triggered_rows_leave_out_those_whose_answer_is_the_target():
    found = texts(with_trigger(TABLE, np.arange(6), **BACKDOOR))
    assert found == [((2, 5, 7, 8, 10 + i), (20, END)) for i in (1, 2, 4, 5)]
    with pytest.raises(ValueError, match="response of every row already"):
        with_trigger(TABLE, np.array([0, 3]), **BACKDOOR)


def test_a_trigger_is_put_where_prompts_begin_to_differ():
    assert place_of([TABLE]) == 2
    assert place_of([TABLE, table_of([(2, 6, 1)], [(20,)])]) == 1


def test_rows_of_hostile_clients():
    assert rows_of(CLIENTS, HOSTILE).tolist() == [3, 4, 5, 9, 10, 11]


def test_rows_without_labels_are_refused():
    many = table_of([(2, 3)] * 70, [(3 + i,) for i in range(70)])
    with pytest.raises(ValueError, match="have 70 different responses"):
        flip_labels(clients_of(many, 2), hostile=np.array([True, False]))
    one = table_of([(2, 3)] * 4, [(3,)] * 4)
    with pytest.raises(ValueError, match="have 1 different responses"):
        flip_labels(clients_of(one, 2), hostile=np.array([True, False]))
