"""Messages as bytes: `len(pack(message))` defines the size of a message."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.algorithm import Pieces, PyTree


def pack(message: PyTree) -> bytes:
    """Returns the message's leaves, in tree order, as raw little-endian bytes.

    Both ends know the structure, shapes and dtypes, so these are not sent.

    >>> import numpy as np
    >>> from fedjax_post.core import num_bytes, pack, unpack
    >>> message = {"codes": np.zeros(3, np.int8), "scale": np.float32(0.5)}
    >>> data = pack(message)
    >>> len(data), num_bytes(message)
    (7, 7)
    >>> print(unpack(data, message)["scale"])
    0.5
    """
    return b"".join(np.asarray(_plain(x)).tobytes() for x in jax.tree.leaves(message))


def unpack(data: bytes, like: PyTree) -> PyTree:
    """Returns the message whose bytes are `data`, with the structure and shapes of `like`.

    Raises:
      ValueError: if `data` does not have as many bytes as `like`.
    """
    if len(data) != num_bytes(like):
        raise ValueError(f"a message of this shape has {num_bytes(like)} bytes, got {len(data)}")
    leaves, structure = jax.tree.flatten(like)
    out, start = [], 0
    for leaf in leaves:
        shape, dtype = _layout(leaf)
        size = int(np.prod(shape)) * dtype.itemsize
        array = np.frombuffer(data[start : start + size], dtype).reshape(shape)
        value = jnp.asarray(array)
        out.append(jax.random.wrap_key_data(value) if _is_key(leaf) else value)
        start += size
    return jax.tree.unflatten(structure, out)


def num_bytes(like: PyTree) -> int:
    """Returns the length of `pack(message)` for a message with these shapes and dtypes."""
    layouts = [_layout(x) for x in jax.tree.leaves(like)]
    return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in layouts)


def pieces(*priced: tuple[int, Any]) -> Pieces:
    """Returns counts of pieces by size, from pairs (bytes of one piece, number of such pieces).

    Sizes are known when a program is traced, numbers when it runs. Keeping them apart is exact,
    whereas a traced sum of bytes would overflow 32 bits.
    """
    counts: Pieces = {}
    for size, number in priced:
        counts[size] = counts[size] + number if size in counts else number
    return counts


def total_bytes(counts: Pieces) -> int:
    """Returns the total bytes of pieces; numbers that are arrays are summed."""
    return sum(size * int(np.asarray(number, np.int64).sum()) for size, number in counts.items())


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x):
    return jax.random.key_data(x) if _is_key(x) else x


def _layout(x) -> tuple[tuple[int, ...], np.dtype]:
    if _is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)
    return tuple(x.shape), np.dtype(x.dtype)
