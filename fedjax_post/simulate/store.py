"""Client states on disk: a row for every client seen so far, in its recent versions.

`rows.bin` consists of slots of one row each, and an index maps clients to slots. The index is only
appended to: a version of the whole population is a prefix of the index. A checkpoint therefore
stores a version instead of a copy, and entries that a killed process wrote after it are cut off
when the version is reopened. A slot is reused when it belongs to no kept checkpoint, not to the
last complete round and not to the current version. With C kept checkpoints, the files take at most
C + 1 rows for each client seen, one for each client of a round, and an index of 20 bytes per row;
see `ClientStore.settle` and `ClientStore.keep`.

Rows and index have checksums. A row is checked whenever it is read, the index when it is opened.
"""

import os
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.clients import empty_aligned
from fedjax_post.integrity import DamagedError

_MOST_PARTS = os.sysconf("SC_IOV_MAX")  # limit on the buffers of one system call
_ENTRY = np.dtype([("client", "<i8"), ("slot", "<i8"), ("crc", "<u4")])
# An index may have as many outdated entries as live ones, and this many more.
_SPARE = 1024


class Version(NamedTuple):
    """A version of all client states: the first entries of an index."""

    generation: int  # of the index
    entries: int
    crc: int = 0  # of these entries


class ClientStore:
    """Rows of fixed size, keyed by client id.

    Args:
      directory: of the files; created if missing, accessible to this user only.
      like: shapes and dtypes of one client's state.
      population: number of clients; each takes 12 bytes of memory.
      version: to open; everything after it is cut off; None starts empty.
      kept: other versions that must stay readable; None: open read-only.
    """

    def __init__(
        self,
        directory: Path,
        like: PyTree,
        population: int,
        version: Version | None = None,
        *,
        kept: Sequence[Version] | None = (),
    ):
        self._directory, self._mode = Path(directory), os.O_RDONLY
        if kept is not None:
            self._mode = os.O_RDWR | os.O_CREAT
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        leaves, self._structure = jax.tree.flatten(like)
        self._layout = [(x.shape, np.dtype(x.dtype)) for x in leaves]
        self._row_size = row_size_of(like)
        self._slot_of = np.full(population, -1, np.int64)
        self._crc_of = np.zeros(population, np.uint32)
        self._kept: dict[Version, np.ndarray] = {}  # the slots of each
        self._free: list[int] = []
        self._replaced: list[int] = []  # slots of the last whole round that have a successor
        self._version, self._index = Version(0, 0), -1
        self._rows = self._open_file(self._directory / "rows.bin")
        self._num_slots = os.fstat(self._rows).st_size // max(1, self._row_size)
        self._open(version or Version(0, 0))
        if kept is not None:
            self.keep(kept)

    @property
    def row_size(self) -> int:
        """Bytes of one client's state."""
        return self._row_size

    def read(self, client_ids: np.ndarray) -> tuple[PyTree, np.ndarray]:
        """Returns states `[clients, ...]`, zeros where none exists, and which of them exist.

        Raises:
          DamagedError: naming a client whose state has changed since it was written.
        """
        slots = np.where(client_ids >= 0, self._slot_of[client_ids], -1)
        leaves = [empty_aligned((len(client_ids), *s), d) for s, d in self._layout]
        for leaf in leaves:
            leaf[slots < 0] = 0
        lanes = _lanes_of(leaves)
        for lane in np.flatnonzero(slots >= 0):
            _read(self._rows, lanes[lane], slots[lane] * self._row_size)
            if _crc(lanes[lane]) != self._crc_of[client_ids[lane]]:
                raise DamagedError(_damaged(self._directory, client_ids[lane], slots[lane]))
        return jax.tree.unflatten(self._structure, leaves), slots >= 0

    def seen(self) -> np.ndarray:
        """Returns the ids of the clients that have a state, ascending."""
        return np.flatnonzero(self._slot_of >= 0)

    def write(self, client_ids: np.ndarray, states: PyTree) -> None:
        """Stores states `[clients, ...]`; client ids are not negative."""
        if not len(client_ids) or not self._row_size:
            return
        lanes = _lanes_of([np.ascontiguousarray(x) for x in jax.tree.leaves(states)])
        entries = np.empty(len(client_ids), _ENTRY)
        entries["client"], entries["slot"] = client_ids, self._room_for(len(client_ids))
        entries["crc"] = [_crc(lane) for lane in lanes]
        self._fill(entries["slot"], lanes)
        self._append(entries)
        before = self._slot_of[client_ids]
        self._replaced += before[before >= 0].tolist()
        self._take(entries)

    def settle(self) -> Version:
        """Returns the version with everything written so far; call it when a round is complete.

        `rewind` can return to it until this is called again. Slots that the round replaced are
        released.
        """
        self._free += [slot for slot in self._replaced if not self._held[slot]]
        self._replaced = []
        return self._version

    def rewind(self, version: Version) -> None:
        """Discards everything after `version`: the last settled version, or a kept one."""
        if version != self._version:
            os.close(self._index)
            self._open(version)
            self._find_room()

    def sync(self) -> Version:
        """Writes everything to disk, and returns the version.

        Starts a new index if most entries are outdated.
        """
        live = self.seen()
        if self._version.entries > 2 * len(live) + _SPARE:
            os.close(self._index)
            self._version = Version(self._version.generation + 1, 0)
            self._index = self._open_file(self._index_path(self._version))
            os.ftruncate(self._index, 0)
            entries = np.empty(len(live), _ENTRY)
            entries["client"] = live
            entries["slot"], entries["crc"] = self._slot_of[live], self._crc_of[live]
            self._append(entries)
        os.fsync(self._rows)
        os.fsync(self._index)
        return self._version

    def keep(self, versions: Sequence[Version]) -> None:
        """Keeps these versions readable beside the current one, and no others."""
        present = self._slot_of[self.seen()]
        known = {**self._kept, self._version: present}
        self._kept = {v: known[v] if v in known else self._slots_of(v) for v in versions}
        generations = {self._version.generation, *(v.generation for v in versions)}
        for path in self._directory.glob("index-*.bin"):
            if int(path.stem.split("-")[1]) not in generations:
                path.unlink()
        self._find_room()

    def close(self) -> None:
        """Closes the files."""
        os.close(self._rows)
        os.close(self._index)

    def _open(self, version: Version) -> None:
        self._index = self._open_file(self._index_path(version))
        entries = _entries(self._directory, version, len(self._slot_of), self._num_slots)
        if self._mode != os.O_RDONLY:
            os.ftruncate(self._index, version.entries * _ENTRY.itemsize)
        self._version, self._slot_of[:], self._replaced = version, -1, []
        self._take(entries)

    def _find_room(self) -> None:
        """Determines which slots belong to kept versions, and which are free."""
        self._held = np.zeros(self._num_slots, bool)
        for slots in self._kept.values():
            self._held[slots] = True
        busy = self._held.copy()
        busy[self._slot_of[self.seen()]] = True
        busy[self._replaced] = True
        self._free = np.flatnonzero(~busy)[::-1].tolist()

    def _room_for(self, count: int) -> np.ndarray:
        """Returns slots to write to, ascending: free ones, then new ones."""
        old = [self._free.pop() for _ in range(min(count, len(self._free)))]
        new = range(self._num_slots, self._num_slots + count - len(old))
        self._num_slots += len(new)
        self._held = np.concatenate([self._held, np.zeros(len(new), bool)])
        return np.array([*sorted(old), *new], np.int64)

    def _fill(self, slots: np.ndarray, lanes: list[list[Any]]) -> None:
        """Writes the rows, those of adjacent slots in one call."""
        cuts = np.flatnonzero(np.diff(slots) != 1) + 1
        for run in np.split(np.arange(len(slots)), cuts):
            parts = (part for lane in run for part in lanes[lane])
            _write(self._rows, parts, slots[run[0]] * self._row_size)

    def _append(self, entries: np.ndarray) -> None:
        raw, (generation, count, crc) = entries.tobytes(), self._version
        _write(self._index, [raw], count * _ENTRY.itemsize)
        self._version = Version(generation, count + len(entries), zlib.crc32(raw, crc))

    def _take(self, entries: np.ndarray) -> None:
        self._slot_of[entries["client"]] = entries["slot"]
        self._crc_of[entries["client"]] = entries["crc"]

    def _slots_of(self, version: Version) -> np.ndarray:
        try:
            entries = _entries(self._directory, version, len(self._slot_of), self._num_slots)
        except (DamagedError, FileNotFoundError):
            return np.empty(0, np.int64)  # it cannot be restored, so its slots are free
        return _latest(entries)["slot"]

    def _open_file(self, path: Path) -> int:
        return os.open(path, self._mode, 0o600)

    def _index_path(self, version: Version) -> Path:
        return self._directory / f"index-{version.generation}.bin"


def row_size_of(like: PyTree) -> int:
    """Returns the bytes of one client's state, from its shapes and dtypes."""
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(like))


def check_version(directory: Path, like: PyTree, population: int, version: Version) -> None:
    """Checks all data of a version of a store, and changes nothing.

    Args:
      directory: of the store.
      like: shapes and dtypes of one client's state.
      population: number of clients.
      version: to check.

    Raises:
      DamagedError: naming what has changed since it was written.
    """
    row_size, path = row_size_of(like), directory / "rows.bin"
    if not version.entries:
        return
    try:
        with open(path, "rb") as rows:
            num_slots = os.fstat(rows.fileno()).st_size // row_size
            for client, slot, crc in _latest(_entries(directory, version, population, num_slots)):
                if zlib.crc32(os.pread(rows.fileno(), row_size, slot * row_size)) != crc:
                    raise DamagedError(_damaged(directory, client, slot))
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is missing") from None


def _entries(directory: Path, version: Version, population: int, num_slots: int) -> np.ndarray:
    """Returns the entries of a version, after checking them."""
    path, size = directory / f"index-{version.generation}.bin", version.entries * _ENTRY.itemsize
    if not version.entries:
        return np.empty(0, _ENTRY)
    if size < 0 or path.stat().st_size < size:
        raise DamagedError(f"{path} holds fewer than the {version.entries} entries of a checkpoint")
    with open(path, "rb") as file:
        raw = file.read(size)
    if zlib.crc32(raw) != version.crc:
        raise DamagedError(f"{path} is damaged: its checksum is not that of a checkpoint")
    entries = np.frombuffer(raw, _ENTRY)
    for name, end in (("client", population), ("slot", num_slots)):
        if entries[name].min() < 0 or entries[name].max() >= end:
            raise DamagedError(f"{path} names a {name} that is not from 0 to {end - 1}")
    return entries


def _latest(entries: np.ndarray) -> np.ndarray:
    """Returns the last entry of each client."""
    newest = np.unique(entries["client"][::-1], return_index=True)[1]
    return entries[::-1][newest]


def _damaged(directory: Path, client: int, slot: int) -> str:
    return f"{directory / 'rows.bin'} is damaged: the state of client {client}, row {slot}"


def _lanes_of(leaves: list[np.ndarray]) -> list[list[Any]]:
    """Returns, for each client, writable byte views of its part of each leaf."""
    flat = [leaf.reshape(len(leaf), -1).view(np.uint8) for leaf in leaves if leaf.size]
    return [list(parts) for parts in zip(*flat, strict=True)]


def _crc(parts: Iterable[Any]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def _read(handle: int, parts: list[Any], offset: int) -> None:
    """Reads from a file into the parts, one after the other."""
    for first in range(0, len(parts), _MOST_PARTS):
        offset += os.preadv(handle, parts[first : first + _MOST_PARTS], offset)


def _write(handle: int, parts: Iterable[Any], offset: int) -> None:
    """Writes the parts to a file, one after the other."""
    left = deque(memoryview(part) for part in parts)
    while left:
        written = os.pwritev(handle, list(islice(left, _MOST_PARTS)), offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]
