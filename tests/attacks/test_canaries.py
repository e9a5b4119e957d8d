"""Canaries: what is planted, and exposure by its definition and in expectation."""

import dataclasses

import numpy as np
import pytest
from attack_rows import END, clients_of, table_of
from test_hostile_rows import CLIENTS, TABLE, texts

from fedjax_post.attacks import exposure, exposure_of, plant_canaries
from fedjax_post.attacks.canaries import Canaries
from fedjax_post.data.table import take_rows

VOCABULARY = np.arange(3, 32)


def planted(**changes):
    given = {"num_canaries": 2, "num_others": 30, "length": 3, "times": 2, "vocabulary": VOCABULARY,
             "end": END, "seed": 0}  # fmt: skip
    return plant_canaries(CLIENTS, **{**given, **changes})


def test_holders_have_the_same_row_several_times_and_others_have_theirs():
    found = planted()
    before, after = texts(TABLE), texts(found.clients.table)
    assert len(set(found.holders)) == 2
    for client in range(4):
        rows = range(3 * client, 3 * client + 3)
        changed = [after[i] for i in rows if after[i] != before[i]]
        if client not in found.holders:
            assert not changed
            continue
        place = found.holders.tolist().index(client)
        assert changed == [texts(found.planted)[place]] * 2
        assert changed[0][0] == before[3 * client][0]
        assert set(changed[0][1][:-1]) <= set(VOCABULARY.tolist())


def test_others_differ_from_the_first_canary_in_their_response_alone():
    found = planted()
    prompt = texts(found.planted)[0][0]
    others = texts(found.others)
    assert len(others) == 30
    assert {p for p, _ in others} == {prompt}
    assert all(len(r) == 4 and r[-1] == END for _, r in others)
    assert len({r for _, r in others}) > 25


def test_exposure_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    losses, others = rng.normal(size=5), rng.normal(size=63)
    for loss, found in zip(losses, exposure(losses, others), strict=True):
        rank = sorted([loss, *others]).index(loss) + 1
        assert found == pytest.approx(np.log2(64) - np.log2(rank))
    assert exposure(np.array([-99.0]), others) == [6.0]
    assert exposure(np.array([99.0]), others) == [0.0]


def test_exposure_without_memory_is_log2_e_on_average():
    """The rank is uniform then: the mean of -log2 of a uniform share is log2 e = 1.44 bits."""
    rng = np.random.default_rng(1)
    found = [exposure(rng.normal(size=1), rng.normal(size=1023))[0] for _ in range(4000)]
    assert np.mean(found) == pytest.approx(np.log2(np.e), abs=0.1)


@pytest.mark.heavy
def test_a_row_that_was_learned_is_exposed_and_another_is_not(learned):
    rng = np.random.default_rng(5)
    prompt = tuple(map(int, texts(learned.table)[0][0]))
    others = table_of([prompt] * 255, rng.integers(3, 32, (255, 6)).tolist())
    rows = take_rows(learned.table, np.array([0]))
    canaries = Canaries(clients_of(learned.table, 4), np.array([0]), rows, others)
    assert exposure_of(learned.model, learned.params, canaries) == [8.0]
    assert exposure_of(learned.model, {}, canaries) < 6


def test_as_many_canaries_as_clients_at_most():
    with pytest.raises(ValueError, match="from 1 to the 4 clients, got 5"):
        planted(num_canaries=5)
    everyone = planted(num_canaries=4, times=9)
    assert everyone.holders.tolist() == [0, 1, 2, 3]
    assert dataclasses.replace(everyone.clients, batch_size=1).table is everyone.clients.table
