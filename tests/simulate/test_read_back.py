"""Properties of what is recorded and read back, over drawn messages, lines and damages."""

import tempfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_post.core.wire import num_bytes, pack, unpack
from fedjax_post.integrity import SUMS, DamagedError, read_lines
from fedjax_post.simulate import recording
from fedjax_post.simulate.recording import DOWN, SUM, UP, Recorded
from fedjax_post.study import folder

# The same examples in every run
drawn = settings(max_examples=15, deadline=None, derandomize=True, database=None)
DTYPES = (np.float32, ml_dtypes.bfloat16, np.int8, np.uint32, np.int32)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
MESSAGES = st.lists(
    st.builds(
        Recorded,
        kind=st.sampled_from([DOWN, UP, SUM]),
        clients=IDS,
        data=st.binary(min_size=1, max_size=40),
        began=st.integers(0, 2**31 - 1),
        num_steps=FINITE,
        weight=FINITE,
    ),
    min_size=1,
    max_size=4,
)
LINES = st.lists(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name not in ("crc32", "not_finite")),
        st.one_of(st.none(), st.booleans(), st.integers(), FINITE, st.text(), st.lists(FINITE)),
        min_size=1,
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def trees(draw):
    """Arrays of any bits, not-a-numbers included, in a dictionary."""

    def array():
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)

    return {name: array() for name in draw(st.sets(st.sampled_from("abcd"), min_size=1))}


@drawn
@given(trees())
def test_a_message_is_unpacked_to_the_same_bits(message):
    data = pack(message)
    assert len(data) == num_bytes(message)
    found = unpack(data, message)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(message), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.asarray(one).tobytes() == other.tobytes()


@drawn
@given(trees(), st.binary(min_size=1, max_size=9))
def test_a_message_of_another_length_is_refused(message, more):
    data = pack(message)
    for wrong in (data + more, data[: -len(more)]):
        if len(wrong) != len(data):
            with pytest.raises(ValueError, match=f"{len(data)} bytes, got {len(wrong)}"):
                unpack(wrong, message)


@drawn
@given(st.dictionaries(st.integers(0, 99_999), MESSAGES, min_size=1, max_size=3))
def test_recorded_rounds_are_read_in_order_and_unchanged(rounds):
    with tempfile.TemporaryDirectory() as directory:
        for round, messages in rounds.items():
            recording.write(Path(directory), round, messages)
        assert list(recording.read(Path(directory))) == sorted(rounds.items())


@drawn
@given(MESSAGES, st.data())
def test_a_changed_byte_of_a_recorded_round_is_refused_by_the_name_of_its_file(messages, data):
    with tempfile.TemporaryDirectory() as directory:
        recording.write(Path(directory), 0, messages)
        files = sorted(path for path in Path(directory).rglob("*") if path.is_file())
        path = data.draw(st.sampled_from([path for path in files if path.name != SUMS]))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=path.name):
            list(recording.read(Path(directory)))


@pytest.mark.heavy
@drawn
@given(LINES, LINES)
def test_lines_that_are_added_are_read_after_the_others(first, more):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / folder.ATTACKS
        folder.add_lines(path, first)
        folder.add_lines(path, more)
        assert list(read_lines(path)) == [*first, *more]


@drawn
@given(LINES, st.data())
def test_lines_are_not_added_to_a_damaged_file_which_stays_as_it_is(lines, data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / folder.ATTACKS
        folder.add_lines(path, lines)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 2))  # but the last line's end
        number = bytes(content[:place]).count(b"\n") + 1
        content[place] = data.draw(st.sampled_from([x for x in b'09aZ"{} ' if x != content[place]]))
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=rf"attacks.jsonl, line {number}\b"):
            folder.add_lines(path, [{"round": 0}])
        assert path.read_bytes() == bytes(content)
