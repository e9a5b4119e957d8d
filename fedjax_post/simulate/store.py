"""Client states on disk: a row for every client that was ever seen, and its history.

Rows are appended, never changed, and `owners.bin` names the client of each. A
version is a number of rows: an older state of the whole population is a prefix
of the files, so a checkpoint names a version instead of copying, and rows that a
killed process left behind are cut off when a version is reopened.
"""

import os
from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.clients import empty_aligned

_MOST_PARTS = os.sysconf("SC_IOV_MAX")  # of one call


class Version(NamedTuple):
    """A state of the population: the first `rows` rows of generation `generation`."""

    generation: int
    rows: int


class ClientStore:
    """Rows of fixed size, keyed by client id.

    Args:
      directory: where the files lie; made if missing.
      like: shapes and dtypes of one client's state.
      population: number of clients; 8 bytes of memory each.
      version: what to reopen, everything after it is cut off; None starts empty.
    """

    def __init__(
        self, directory: Path, like: PyTree, population: int, version: Version | None = None
    ):
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        leaves, self._structure = jax.tree.flatten(like)
        self._layout = [(x.shape, np.dtype(x.dtype)) for x in leaves]
        self._row_size = sum(int(np.prod(s)) * d.itemsize for s, d in self._layout)
        self._rows_of = np.full(population, -1, np.int64)
        self._version = Version(0, 0)
        self._open(version or Version(0, 0))

    @property
    def version(self) -> Version:
        """The version that holds everything written so far."""
        return self._version

    @property
    def row_size(self) -> int:
        """Bytes of one client's state."""
        return self._row_size

    def read(self, client_ids: np.ndarray) -> tuple[PyTree, np.ndarray]:
        """States `[clients, ...]` and which of them exist; zeros for those that do not."""
        positions = np.where(client_ids >= 0, self._rows_of[client_ids], -1)
        leaves = [empty_aligned((len(client_ids), *s), d) for s, d in self._layout]
        for leaf in leaves:
            leaf[positions < 0] = 0
        lanes = _lanes_of(leaves)
        for lane in np.flatnonzero(positions >= 0):
            _read(self._rows, lanes[lane], positions[lane] * self._row_size)
        return jax.tree.unflatten(self._structure, leaves), positions >= 0

    def seen(self) -> np.ndarray:
        """Ids of the clients that have a state, ascending."""
        return np.flatnonzero(self._rows_of >= 0)

    def write(self, client_ids: np.ndarray, states: PyTree) -> None:
        """Appends the states `[clients, ...]` of clients with ids 0 or more."""
        count = len(client_ids)
        if not count or not self._row_size:
            return
        lanes = _lanes_of([np.ascontiguousarray(x) for x in jax.tree.leaves(states)])
        start, num_bytes = self._version.rows, count * self._row_size
        try:
            _write(self._rows, [part for lane in lanes for part in lane], start * self._row_size)
            _write(self._owners, [client_ids.astype("<i8").tobytes()], start * 8)
        except OSError as error:
            raise OSError(
                error.errno,
                f"no room for the states of clients ({num_bytes:,} bytes; {error.strerror}); "
                "free some and resume, nothing before the last checkpoint is lost",
                str(self._directory),
            ) from error
        self._rows_of[client_ids] = np.arange(start, start + count)
        self._version = self._version._replace(rows=start + count)

    def rewind(self, version: Version) -> None:
        """Forgets everything after `version`."""
        if version != self._version:
            self.close()
            self._rows_of[:] = -1
            self._open(version)

    def sync(self) -> Version:
        """Makes everything durable; starts a new generation if most rows are outdated."""
        live = self.seen()
        if self._version.rows > 2 * len(live) + 1024:
            self._compact(live)
        os.fsync(self._rows)
        os.fsync(self._owners)
        return self._version

    def forget_before(self, generation: int) -> None:
        """Deletes the files of older generations, which no checkpoint names any more."""
        for path in self._directory.glob("*.bin"):
            if int(path.stem.split("-")[1]) < generation:
                path.unlink()

    def close(self) -> None:
        """Closes the files."""
        os.close(self._rows)
        os.close(self._owners)

    def _open(self, version: Version) -> None:
        flags = os.O_RDWR | os.O_CREAT
        rows, owners = self._paths(version.generation)
        self._rows, self._owners = os.open(rows, flags), os.open(owners, flags)
        for handle, size in ((self._rows, self._row_size), (self._owners, 8)):
            if os.fstat(handle).st_size < version.rows * size:
                raise ValueError(
                    f"{self._directory} holds fewer than the {version.rows} client states that "
                    "its checkpoint names; restore the folder or start a new run"
                )
            os.ftruncate(handle, version.rows * size)
        ids = np.frombuffer(os.pread(self._owners, version.rows * 8, 0), "<i8")
        self._rows_of[ids] = np.arange(version.rows)
        self._version = version

    def _compact(self, live: np.ndarray) -> None:
        old_rows, old_owners, positions = self._rows, self._owners, self._rows_of[live]
        self._open(Version(self._version.generation + 1, 0))
        for start in range(0, len(live), 1024):
            part = slice(start, start + 1024)
            raw = [os.pread(old_rows, self._row_size, p * self._row_size) for p in positions[part]]
            _write(self._rows, raw, start * self._row_size)
        _write(self._owners, [live.astype("<i8").tobytes()], 0)
        self._rows_of[live] = np.arange(len(live))
        self._version = self._version._replace(rows=len(live))
        os.close(old_rows)
        os.close(old_owners)

    def _paths(self, generation: int) -> tuple[Path, Path]:
        return (
            self._directory / f"rows-{generation}.bin",
            self._directory / f"owners-{generation}.bin",
        )


def _lanes_of(leaves: list[np.ndarray]) -> list[list[Any]]:
    """The bytes of each client's part of each leaf, in place: files are read into, written from."""
    flat = [leaf.reshape(len(leaf), -1).view(np.uint8) for leaf in leaves if leaf.size]
    return [list(parts) for parts in zip(*flat, strict=True)]


def _read(handle: int, parts: list[Any], offset: int) -> None:
    """Fills the parts one behind the other."""
    for first in range(0, len(parts), _MOST_PARTS):
        offset += os.preadv(handle, parts[first : first + _MOST_PARTS], offset)


def _write(handle: int, parts: Iterable[Any], offset: int) -> None:
    """Writes the parts one behind the other."""
    left = deque(memoryview(part) for part in parts)
    while left:
        written = os.pwritev(handle, list(islice(left, _MOST_PARTS)), offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]
