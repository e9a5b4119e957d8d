"""Laws of visits: which rows a client reads, in what order, and what is padding."""

import jax
import numpy as np
import pytest

from fedjax_post.data.batches import ArrayClients, TokenClients, pool
from fedjax_post.data.clients import in_lanes
from fedjax_post.data.partition import Partition
from fedjax_post.data.ranks import RankedClients
from fedjax_post.data.table import TokenTable, gather

L, PAD = 8, 0


def toy_table(num_rows=11):
    """Row i: a prompt token 1, then 1 + i % 3 response tokens 100 + i; two chunks."""
    rows = [[1] + [~(100 + i)] * (1 + i % 3) for i in range(num_rows)]
    halves = [rows[: num_rows // 2], rows[num_rows // 2 :]]
    lengths = [np.array([len(row) for row in half]) for half in halves]
    return TokenTable(
        values=tuple(np.concatenate(half).astype(np.int32) for half in halves),
        chunk=np.repeat([0, 1], [len(half) for half in halves]).astype(np.int32),
        start=np.concatenate([np.cumsum(length) - length for length in lengths]),
        length=np.concatenate(lengths).astype(np.int32),
        prompt_length=np.ones(num_rows, np.int32),
        max_length=L,
        pad_id=PAD,
    )


def toy_partition():
    """Clients of 6, 4 and 1 rows."""
    return Partition(np.array([0, 6, 10, 11]), np.array([0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9]))


def token_clients(**schedule):
    return TokenClients(toy_table(), toy_partition(), batch_size=4, **schedule)


def array_clients(**schedule):
    arrays = [
        {"x": 10.0 * k + np.arange(n)[:, None], "y": np.arange(n)} for k, n in enumerate([6, 4, 1])
    ]
    return ArrayClients(arrays, batch_size=4, **schedule)


def rng(seed=0):
    return np.random.default_rng(seed)


def rows_seen(data):
    """Which rows of the toy table a visit holds, in order."""
    marks = data.batches["tokens"][..., 1].ravel()
    return (marks[marks >= 100] - 100).tolist()


def lane_of(data, lane):
    return jax.tree.map(lambda x: x[lane], data)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.parametrize("make", [token_clients, array_clients])
@pytest.mark.parametrize("schedule", [{"local_steps": 3}, {"local_epochs": 2}])
def test_shapes_and_dtypes_are_the_same_for_every_client(make, schedule):
    clients = make(**schedule)
    visits = [clients.visit(k, rng()) for k in range(len(clients))]
    specs = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), visit) for visit in visits]
    assert specs[0] == specs[1] == specs[2]
    assert visits[0].step_mask.shape == (3,)


@pytest.mark.parametrize("make", [token_clients, array_clients])
def test_visit_depends_on_the_generator_alone(make):
    clients = make(local_steps=2)
    assert same(clients.visit(0, rng(1)), clients.visit(0, rng(1)))
    assert not same(clients.visit(0, rng(1)), clients.visit(0, rng(2)))


def test_an_epoch_sees_every_row_of_the_client_once():
    data = token_clients(local_epochs=1).visit(0, rng())
    assert sorted(rows_seen(data)) == [0, 2, 4, 6, 8, 10]


def test_epochs_are_reshuffled():
    seen = rows_seen(token_clients(local_epochs=2).visit(0, rng()))
    assert sorted(seen[:6]) == sorted(seen[6:]) == [0, 2, 4, 6, 8, 10]
    assert seen[:6] != seen[6:]


def test_local_steps_take_the_head_of_the_epochs_stream():
    steps = token_clients(local_steps=2).visit(0, rng())
    epochs = token_clients(local_epochs=2).visit(0, rng())
    assert rows_seen(steps) == rows_seen(epochs)[:8]


def test_one_example_fills_all_local_steps():
    data = token_clients(local_steps=2).visit(2, rng())
    assert rows_seen(data) == [9] * 8
    assert data.step_mask.all()


def test_padding_rows_and_masked_steps_hold_no_loss_token():
    data = token_clients(local_epochs=1).visit(2, rng())  # 1 row of a batch of 4, 1 step of 2
    assert data.step_mask.tolist() == [True, False]
    assert not data.batches["loss_mask"][0, 1:].any()
    assert not data.batches["loss_mask"][1].any()
    assert (data.batches["tokens"][1] == PAD).all()


def test_num_tokens_counts_what_the_loss_looks_at():
    clients = token_clients(local_epochs=2)
    for k in range(3):
        data = clients.visit(k, rng())
        assert data.num_tokens == data.batches["loss_mask"][..., 1:].sum()
        assert data.num_read == (data.batches["tokens"] != PAD).sum()
        assert data.num_examples == [6, 4, 1][k]


def test_loss_mask_is_the_response_and_never_the_first_position():
    table = toy_table()._replace(start=toy_table().start + 1, length=toy_table().length - 1)
    tokens, loss_mask = gather(table, np.array([2, 6]), num_rows=3)
    assert tokens[0, :4].tolist() == [102, 102, 102, PAD]
    assert loss_mask[0, :4].tolist() == [False, True, True, False]
    assert loss_mask.dtype == bool
    assert tokens.dtype == np.int32
    assert (tokens[2] == PAD).all()


def test_last_array_batch_is_filled_from_the_next_permutation():
    data = array_clients(local_epochs=1).visit(0, rng())  # 6 examples, 2 batches of 4
    seen = data.batches["y"].ravel()
    assert sorted(seen[:6].tolist()) == list(range(6))
    assert len(set(seen[6:].tolist())) == 2
    assert data.num_tokens == 8
    assert data.step_mask.all()


def test_visits_of_arrays_are_the_same_in_less_room():
    """Nothing but padded steps is cut."""
    clients = ArrayClients([np.arange(n) for n in (100, 5, 9)], batch_size=2, local_epochs=1)
    assert [clients.room(steps) for steps in (1, 4, 5, 13, 14, 50)] == [4, 4, 13, 13, 50, 50]
    whole = clients.visit(1, rng(1))
    cut = lane_of(in_lanes(clients, np.array([1]), rng, longest=3), 0)
    assert cut.step_mask.tolist() == [True] * 3 + [False]
    assert same(cut.batches, whole.batches[:4])
    assert same(cut._replace(batches=0, step_mask=0), whole._replace(batches=0, step_mask=0))


class Visited:
    """Clients that offer nothing but visits."""

    def __init__(self, clients):
        self.visit, self.num_steps, self._count = clients.visit, clients.num_steps, len(clients)

    def __len__(self):
        return self._count


@pytest.mark.parametrize("schedule", [{"local_steps": 3}, {"local_epochs": 2}])
@pytest.mark.parametrize("ids", [[2, 0, 1], [1, 2, -1, -1], [-1, -1]])
def test_clients_in_lanes_are_their_visits(schedule, ids):
    """Laid out at once or stacked; padding lanes take no step and hold nothing."""
    clients = array_clients(**schedule)
    at_once = in_lanes(RankedClients(clients, (1, 2)), np.array(ids), rng)
    stacked = in_lanes(RankedClients(Visited(clients), (1, 2)), np.array(ids), rng)
    for lane, client_id in enumerate(ids):
        for data in (lane_of(at_once, lane), lane_of(stacked, lane)):
            if client_id >= 0:
                alone = clients.visit(client_id, rng(client_id))
                assert same(data, alone._replace(rank=np.int32(1 + client_id % 2)))
            else:
                assert not data.step_mask.any()
                assert data.num_examples == data.num_tokens == data.num_read == 0
    specs = [jax.tree.map(lambda x: (x.shape, x.dtype), data) for data in (at_once, stacked)]
    assert specs[0] == specs[1]


def test_padding_repeats_real_examples():
    """Zeros might be outside a loss's domain."""
    data = in_lanes(
        ArrayClients([np.ones(3)], batch_size=2, local_epochs=2), np.array([0, -1]), rng
    )
    assert (data.batches == 1).all()


def test_batches_in_lanes_lie_where_jax_wants_them():
    """On 64 bytes: there jax on a CPU reads them in place, elsewhere it copies them."""
    for length in range(1, 9):
        arrays = [np.ones((n, length), np.float32) for n in (5, 2, 9)]
        clients = ArrayClients(arrays, batch_size=2, local_steps=2)
        assert in_lanes(clients, np.array([0, 2]), rng).batches.ctypes.data % 64 == 0


def test_arrays_stay_together():
    batches = array_clients(local_steps=3).visit(1, rng()).batches
    np.testing.assert_array_equal(batches["x"][..., 0], 10.0 + batches["y"])


def test_pool_holds_exactly_the_cohorts_tokens_step_by_step():
    clients = token_clients(local_epochs=1)
    visits = [clients.visit(k, rng(k)) for k in range(3)]
    data = pool(visits)
    assert data.batches["tokens"].shape == (2, 12, L)
    for step in range(2):
        parts = [visit.batches["tokens"][step] for visit in visits]
        np.testing.assert_array_equal(data.batches["tokens"][step], np.concatenate(parts))
    assert data.num_tokens == data.batches["loss_mask"].sum()
    assert data.num_read == (data.batches["tokens"] != PAD).sum()
    assert data.num_examples == 11
    assert data.step_mask.all()


def test_pool_of_one_is_that_visit():
    data = token_clients(local_steps=2).visit(0, rng())
    assert same(pool([data]), data)


def test_pool_refuses_uneven_steps_that_cannot_be_masked():
    clients = array_clients(local_epochs=1)
    with pytest.raises(ValueError, match=r"unequal numbers of steps.*local_steps"):
        pool([clients.visit(k, rng()) for k in range(3)])


@pytest.mark.parametrize("make", [token_clients, array_clients])
def test_bad_schedules_are_refused(make):
    with pytest.raises(ValueError, match="give exactly one"):
        make()
    with pytest.raises(ValueError, match="give exactly one"):
        make(local_steps=1, local_epochs=1)
    with pytest.raises(ValueError, match="local_steps must be at least 1, got 0"):
        make(local_steps=0)


def test_clients_without_examples_are_refused():
    with pytest.raises(ValueError, match="client 1 has no examples"):
        ArrayClients([np.ones(2), np.ones(0)], batch_size=1, local_steps=1)
    partition = Partition(np.array([0, 0, 2]), np.arange(2))
    with pytest.raises(ValueError, match="client 0 has no examples"):
        TokenClients(toy_table(), partition, batch_size=1, local_steps=1)
    with pytest.raises(ValueError, match="no clients"):
        ArrayClients([], batch_size=1, local_steps=1)


def test_leaves_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"client 0 holds arrays of lengths \[2, 3\]"):
        ArrayClients([{"x": np.ones(2), "y": np.ones(3)}], batch_size=1, local_steps=1)


@pytest.mark.parametrize("client_id", [-1, 3])
def test_unknown_clients_are_refused(client_id):
    for clients in (token_clients(local_steps=1), array_clients(local_steps=1)):
        with pytest.raises(IndexError, match="not among the 3 clients"):
            clients.visit(client_id, rng())
