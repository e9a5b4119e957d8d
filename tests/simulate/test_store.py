"""The store: sparse, versioned, and never torn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.simulate.store import ClientStore, Version

LIKE = {
    "a": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "b": jax.ShapeDtypeStruct((), jnp.int32),
    "h": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
}


def states(*values):
    fill = lambda x: np.stack([np.full(x.shape, v, x.dtype) for v in values])
    return jax.tree.map(fill, LIKE)


def held(store, *ids):
    rows, found = store.read(np.array(ids, np.int32))
    return [int(b) if f else None for b, f in zip(rows["b"], found, strict=True)]


@pytest.fixture
def store(tmp_path):
    store = ClientStore(tmp_path, LIKE, 100)
    yield store
    store.close()


def test_rows_come_back_to_the_bit(store):
    store.write(np.array([7, 3]), states(1, 2))
    rows, found = store.read(np.array([3, 5, 7, -1]))
    assert found.tolist() == [True, False, True, False]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[[2, 0]], b), rows, states(1, 2))
    assert rows["h"].dtype == jnp.bfloat16


def test_a_later_row_replaces_an_earlier_one(store):
    store.write(np.array([7]), states(1))
    store.write(np.array([7]), states(9))
    assert held(store, 7) == [9]


def test_rewinding_forgets_what_came_after(store):
    store.write(np.array([7, 8]), states(1, 2))
    version = store.sync()
    store.write(np.array([7, 9]), states(5, 6))
    store.rewind(version)
    assert held(store, 7, 8, 9) == [1, 2, None]


def test_a_torn_tail_is_cut_off(tmp_path, store):
    store.write(np.array([7]), states(1))
    version = store.sync()
    store.write(np.array([7, 8]), states(5, 6))
    with open(tmp_path / "rows-0.bin", "r+b") as file:  # as a kill in mid-write leaves it
        file.truncate(store.row_size + 5)
    reopened = ClientStore(tmp_path, LIKE, 100, version)
    assert held(reopened, 7, 8) == [1, None]
    reopened.close()


def test_missing_rows_are_reported(tmp_path):
    with pytest.raises(ValueError, match="holds fewer than the 3 client states"):
        ClientStore(tmp_path, LIKE, 100, Version(0, 3))


def test_outdated_rows_are_dropped_in_time(tmp_path, store):
    for value in range(1500):
        store.write(np.array([value % 3]), states(value))
    version = store.sync()
    assert version == Version(1, 3)
    assert held(store, 0, 1, 2, 3) == [1497, 1498, 1499, None]
    assert (tmp_path / "rows-0.bin").exists()  # an older checkpoint may name it
    store.forget_before(1)
    assert not (tmp_path / "rows-0.bin").exists()
    assert held(store, 2) == [1499]


def test_clients_without_state_cost_nothing(tmp_path):
    store = ClientStore(tmp_path, (), 10)
    store.write(np.array([1]), ())
    assert store.read(np.array([1]))[0] == ()
    assert store.version.rows == 0
    store.close()
