"""Packing: every example is in one row, once and whole; no example is preferred."""

import numpy as np
import pytest

from fedjax_post.data.batches import TokenClients
from fedjax_post.data.packing import first_fit, max_rows
from fedjax_post.data.partition import Partition
from fedjax_post.data.table import TokenTable

L, PAD = 8, 0


def table(lengths):
    """Row i: prompt token i + 1, then response tokens of the same value."""
    rows = [[i + 1] + [~(i + 1)] * (n - 1) for i, n in enumerate(lengths)]
    lengths = np.array(lengths, np.int32)
    return TokenTable(
        values=(np.concatenate(rows).astype(np.int32),),
        chunk=np.zeros(len(rows), np.int32),
        start=np.cumsum(lengths) - lengths,
        length=lengths,
        prompt_length=np.ones(len(rows), np.int32),
        max_length=L,
        pad_id=PAD,
    )


LENGTHS = [3, 5, 2, 7, 2, 4, 3, 2, 6]


def clients(**schedule):
    return TokenClients(
        table(LENGTHS),
        Partition(np.array([0, 6, 9]), np.arange(9)),
        batch_size=2,
        pack_length=L,
        **schedule,
    )


def visit(client_id=0, seed=0, **schedule):
    return clients(**schedule).visit(client_id, np.random.default_rng(seed))


def segments_of(data):
    """Every packed example, as its tokens, with its loss mask."""
    flat = {name: leaf.reshape(-1, L) for name, leaf in data.batches.items()}
    found = []
    for row in range(len(flat["tokens"])):
        for number in range(1, flat["segments"][row].max() + 1):
            here = flat["segments"][row] == number
            assert np.diff(np.flatnonzero(here)).max(initial=1) == 1
            found.append((flat["tokens"][row][here], flat["loss_mask"][row][here]))
    return found


def test_first_fit_takes_the_first_row_with_room():
    places = first_fit(np.array([5, 4, 3, 4, 2]), 8)
    assert places.row.tolist() == [0, 1, 0, 1, 2]
    assert places.start.tolist() == [0, 0, 5, 4, 0]
    assert places.num_rows == 3


def test_with_a_limit_it_ends_at_the_first_example_without_room():
    places = first_fit(np.array([5, 6, 4, 1]), 8, num_rows=2)
    assert places.row.tolist() == [0, 1]


def test_no_stream_takes_more_rows_than_the_bound():
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(1, L + 1, rng.integers(1, 30))
        bound = max_rows(np.array(len(lengths)), np.array(lengths.sum()), L)
        assert first_fit(lengths, L).num_rows <= bound


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_epoch_holds_every_example_whole_and_once(epochs):
    data = visit(local_epochs=epochs)
    found = segments_of(data)
    assert sorted(tokens[0] - 1 for tokens, _ in found) == sorted(list(range(6)) * epochs)
    for tokens, mask in found:
        assert len(tokens) == LENGTHS[tokens[0] - 1]
        assert (tokens == tokens[0]).all()
        assert mask.tolist() == [False] + [True] * (len(tokens) - 1)
    assert data.num_read == epochs * sum(LENGTHS[:6])
    assert data.num_tokens == epochs * (sum(LENGTHS[:6]) - 6)


def test_padding_is_segment_zero_without_loss():
    data = visit(1, local_epochs=1)
    blank = data.batches["segments"] == 0
    assert blank.any()
    assert (data.batches["tokens"][blank] == PAD).all()
    assert not data.batches["loss_mask"][blank].any()


def test_steps_are_those_that_hold_rows():
    data = visit(1, local_epochs=1)
    used = (data.batches["segments"] > 0).any((1, 2))
    np.testing.assert_array_equal(used, data.step_mask)
    assert data.step_mask.sum() <= clients(local_epochs=1).num_steps(1)


def test_local_steps_fill_all_their_rows():
    data = visit(local_steps=3)
    assert data.step_mask.all()
    assert (data.batches["segments"][:, :, 0] == 1).all()
    assert (data.batches["segments"] > 0).mean() > 0.6


def test_shapes_are_the_same_for_every_client():
    for schedule in ({"local_steps": 2}, {"local_epochs": 1}):
        shapes = [
            {name: leaf.shape for name, leaf in visit(k, **schedule).batches.items()}
            for k in (0, 1)
        ]
        assert shapes[0] == shapes[1]


def test_a_packed_row_shorter_than_one_example_is_refused():
    with pytest.raises(ValueError, match="pack_length=7 is less than max_length=8; use at least 8"):
        TokenClients(table(LENGTHS), Partition(np.array([0, 9]), np.arange(9)), batch_size=1,
                     local_steps=1, pack_length=7)  # fmt: skip


def test_more_examples_fit_than_without():
    packed = visit(local_steps=2)
    single = TokenClients(
        table(LENGTHS), Partition(np.array([0, 6, 9]), np.arange(9)), batch_size=2, local_steps=2
    ).visit(0, np.random.default_rng(0))
    assert packed.num_read > single.num_read
    assert packed.step_size == single.step_size == 2 * L
