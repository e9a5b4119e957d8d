"""The store: sparse, versioned, bounded, checked, and never half written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.integrity import DamagedError
from fedjax_post.simulate.store import ClientStore, Version, check_version

LIKE = {
    "a": jax.ShapeDtypeStruct((2, 3), jnp.float32),
    "b": jax.ShapeDtypeStruct((), jnp.int32),
    "h": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
}
ENTRY = 20  # bytes of an entry of the index


def states(*values):
    fill = lambda x: np.stack([np.full(x.shape, v, x.dtype) for v in values])
    return jax.tree.map(fill, LIKE)


def held(store, *ids):
    rows, found = store.read(np.array(ids, np.int32))
    return [int(b) if f else None for b, f in zip(rows["b"], found, strict=True)]


def flip(path, place, bit=0):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


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
    version = store.settle()
    store.write(np.array([7, 9]), states(5, 6))
    store.rewind(version)
    assert held(store, 7, 8, 9) == [1, 2, None]


def test_a_torn_tail_is_cut_off(tmp_path, store):
    store.write(np.array([7]), states(1))
    version = store.sync()
    store.write(np.array([7, 8]), states(5, 6))
    for name, size in (("rows.bin", store.row_size), ("index-0.bin", ENTRY)):
        with open(tmp_path / name, "r+b") as file:  # as a kill in mid-write leaves it
            file.truncate(size + 5)
    reopened = ClientStore(tmp_path, LIKE, 100, version)
    assert held(reopened, 7, 8) == [1, None]
    reopened.close()


def test_missing_rows_are_reported(tmp_path):
    with pytest.raises(DamagedError, match="holds fewer than the 3 entries of a checkpoint"):
        ClientStore(tmp_path, LIKE, 100, Version(0, 3))


def test_every_flipped_bit_of_a_version_is_found(tmp_path, store):
    store.write(np.array([7, 3]), states(1, 2))
    version = store.sync()
    check_version(tmp_path, LIKE, 100, version)
    for name, size in (("rows.bin", 2 * store.row_size), ("index-0.bin", 2 * ENTRY)):
        for place in range(size):
            flip(tmp_path / name, place, place % 8)
            with pytest.raises(DamagedError, match=f"{name} "):
                check_version(tmp_path, LIKE, 100, version)
            flip(tmp_path / name, place, place % 8)


def test_a_damaged_row_is_refused_when_it_is_read(tmp_path, store):
    store.write(np.array([7, 3]), states(1, 2))
    flip(tmp_path / "rows.bin", store.row_size + 4)
    assert held(store, 7) == [1]
    with pytest.raises(DamagedError, match=r"rows.bin is damaged: the state of client 3, row 1"):
        store.read(np.array([7, 3]))


def test_an_index_names_nobody_outside_the_population(tmp_path, store):
    store.write(np.array([7]), states(1))
    with pytest.raises(DamagedError, match="names a client that is not from 0 to 6"):
        check_version(tmp_path, LIKE, 7, store.sync())


def test_the_file_holds_a_row_for_each_version_that_is_kept_and_no_more(tmp_path, store):
    """Two checkpoints, and rounds of 5 of 10 clients; however long the run is."""
    rng, kept, told = np.random.default_rng(0), [], {}
    for round in range(1, 600):
        ids = np.sort(rng.choice(10, 5, replace=False))
        store.write(ids, states(*(100 * round + ids)))
        store.settle()
        if round % 7 == 0:
            kept = [*kept, store.sync()][-2:]
            told[kept[-1]] = held(store, *range(10))
            store.keep(kept)
        assert (tmp_path / "rows.bin").stat().st_size <= (3 * 10 + 5) * store.row_size
    assert sum(p.stat().st_size for p in tmp_path.glob("index-*")) < 2 * ENTRY * (1024 + 2 * 10)
    assert kept[-1].generation >= 1  # the index was made anew on the way
    for version in kept:
        check_version(tmp_path, LIKE, 10, version)
    for version in reversed(kept):  # to open one cuts off what came after it
        reopened = ClientStore(tmp_path, LIKE, 100, version, kept=kept)
        assert held(reopened, *range(10)) == told[version]
        reopened.close()


def test_a_round_that_was_broken_off_costs_no_version_its_rows(tmp_path, store):
    store.write(np.arange(4), states(1, 2, 3, 4))
    store.settle()
    first = store.sync()
    store.keep([first])
    for value in (10, 20):
        store.write(np.arange(4), states(*(value + np.arange(4))))
        whole = store.settle()
    store.write(np.arange(4), states(*(30 + np.arange(4))))
    store.rewind(whole)
    assert held(store, *range(4)) == [20, 21, 22, 23]
    store.write(np.arange(4), states(*(40 + np.arange(4))))
    store.rewind(first)
    assert held(store, *range(4)) == [1, 2, 3, 4]


def test_a_store_that_is_only_read_changes_nothing(tmp_path, store):
    store.write(np.array([7, 3]), states(1, 2))
    version = store.settle()
    store.write(np.array([7]), states(5))
    (tmp_path / "index-9.bin").write_bytes(b"of another checkpoint")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    reader = ClientStore(tmp_path, LIKE, 100, version, kept=None)
    assert held(reader, 7, 3) == [1, 2]
    reader.close()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_its_files_are_for_this_user_alone(tmp_path):
    store = ClientStore(tmp_path / "clients", LIKE, 3)
    store.write(np.array([1]), states(1))
    assert (tmp_path / "clients").stat().st_mode & 0o077 == 0
    assert [p.stat().st_mode & 0o077 for p in (tmp_path / "clients").iterdir()] == [0, 0]
    store.close()


def test_clients_without_state_cost_nothing(tmp_path):
    store = ClientStore(tmp_path, (), 10)
    store.write(np.array([1]), ())
    assert store.read(np.array([1]))[0] == ()
    assert store.sync().entries == 0
    store.close()
