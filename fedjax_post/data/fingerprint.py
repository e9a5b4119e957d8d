"""Hashes of data: equal for equal content, wherever it is stored and however it is chunked."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fedjax_post.data.table import TokenTable


class Fingerprint:
    """A hash that is built up from numbers, texts and arrays, together with their types."""

    def __init__(self, *content: Any):
        self._hash = hashlib.sha256()
        self.add(*content)

    def add(self, *content: Any) -> None:
        """Adds arrays by dtype, shape and bytes, and everything else by its `repr`."""
        for item in content:
            if isinstance(item, np.ndarray):
                self._hash.update(f"{item.dtype.str}{item.shape};".encode())
                self._hash.update(_bytes_of(item))
            else:
                self._hash.update(f"{item!r};".encode())

    def add_table(self, table: "TokenTable") -> None:
        """Adds the tokens of a table, and the places where its rows begin and end."""
        first = np.cumsum([0, *(len(values) for values in table.values)])
        self.add(table.max_length, table.pad_id, first[table.chunk] + table.start, table.length)
        for values in table.values:
            self._hash.update(_bytes_of(values))

    def hexdigest(self) -> str:
        """Returns the first 64 bits of the hash, in hexadecimal digits."""
        return self._hash.hexdigest()[:16]


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
