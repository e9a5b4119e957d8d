"""The arrays of a checkpoint: equal to the bit in any dtype, and in their places."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax_post.simulate import arrays


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint32", "int32", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_arrays_come_back_to_the_bit(tmp_path, dtype, shape):
    tree = {"b": jnp.ones(shape, dtype), "a": (np.zeros(shape, dtype), jnp.full(shape, 1, dtype))}
    arrays.write(tmp_path / "file", tree)
    found = arrays.read(tmp_path / "file", tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_so_do_bfloat16_and_numbers_that_are_none(tmp_path):
    bits = np.array([0x7FC1, 0xFF80, 0x8000, 0x0001], np.uint16)  # NaN, -inf, -0, the least
    tree = [jnp.asarray(bits.view(ml_dtypes.bfloat16)), jnp.float32(jnp.nan)]
    arrays.write(tmp_path / "file", tree)
    found = arrays.read(tmp_path / "file", tree)
    np.testing.assert_array_equal(np.asarray(found[0]).view(np.uint16), bits)
    assert np.asarray(found[1]).tobytes() == np.asarray(tree[1]).tobytes()


def test_more_than_ten_arrays_stay_in_order_and_views_are_written_as_seen(tmp_path):
    tree = [np.arange(6, dtype=np.float32).reshape(2, 3).T * i for i in range(12)]
    arrays.write(tmp_path / "file", tree)
    for one, other in zip(arrays.read(tmp_path / "file", tree), tree, strict=True):
        np.testing.assert_array_equal(one, other)
