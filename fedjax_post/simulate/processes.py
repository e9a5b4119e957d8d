"""Several processes, as under `jax.distributed`: what each owns, and what they exchange.

Every process runs the same program and draws the same cohorts. It prepares the data of its own
lanes and stores the states of its own clients; process 0 writes the records. With a single
process these functions exchange nothing.

Client i belongs to part i mod P of the population, and part p to process p mod the number of
processes. P is the number of processes that began the run, so it can be resumed with any other
number of processes that see its directory.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_post.core.algorithm import ClientData, PyTree
from fedjax_post.simulate.store import ClientStore, Version, check_version

Versions = tuple[Version, ...]  # of each part of a store


def is_first() -> bool:
    """Returns whether this process writes the files that are written only once."""
    return jax.process_index() == 0


def agree(value: bool) -> bool:
    """Returns the value of the first process, on all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def exchange(text: str) -> list[str]:
    """Returns the texts of all processes, by process number."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(own)))
    row = np.zeros(max(1, sizes.max()), np.uint8)
    row[: len(own)] = own
    rows = multihost_utils.process_allgather(row)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def gather(tree: PyTree) -> PyTree:
    """Returns the tree with complete numpy arrays, on every process."""
    if jax.process_count() == 1:
        return _fetch(tree)

    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return _fetch(jax.tree.map(whole, tree))


def _fetch(tree: PyTree) -> PyTree:
    """Returns the tree with numpy arrays: views on a CPU, else copies made in one transfer."""
    if jax.default_backend() == "cpu":
        return jax.tree.map(np.asarray, tree)
    return jax.device_get(tree)


def gather_data(data: ClientData, local: slice) -> ClientData:
    """Returns the data of all lanes, without batches, from the data of each process's lanes."""
    if jax.process_count() == 1:
        return data
    from jax.experimental import multihost_utils

    data = data._replace(batches=())
    starts, data = multihost_utils.process_allgather((np.int32(local.start), data))
    first = np.unique(starts, return_index=True)[1]  # processes may share lanes
    return jax.tree.map(lambda x: np.concatenate(x[first]), data)


def shared_like(tree: PyTree) -> PyTree:
    """Returns shapes to restore a tree with: replicated if there are several processes."""
    if jax.process_count() == 1:
        return tree
    mesh = Mesh(np.array(jax.devices()), ("all",))
    whole = NamedSharding(mesh, PartitionSpec())
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
    return jax.tree.map(like, tree)


def are_together() -> bool:
    """Returns whether all processes reach this place: False if this one is handling an error."""
    return jax.process_count() == 1 or sys.exc_info()[0] in (None, GeneratorExit)


def no_versions() -> Versions:
    """Returns the versions of a new run's parts: an empty part for each process."""
    return (Version(0, 0),) * jax.process_count()


class PartedStore:
    """Client states in parts, each a `ClientStore` of the process that owns it.

    To read, every process receives the rows of a chunk from every process; to write, it receives
    them once. All processes call every method except `close`, in the same order.

    Args:
      directory: of all parts; processes may share it.
      like: shapes and dtypes of one client's state.
      population: number of clients.
      versions: version to open of each part.
      kept: other versions, each of all parts, that must stay readable; None: open read-only.
    """

    def __init__(
        self,
        directory: Path,
        like: PyTree,
        population: int,
        versions: Versions,
        *,
        kept: Sequence[Versions] | None = (),
    ):
        self._like, self._num_parts = like, len(versions)
        self._versions, self._population = list(versions), population
        of_part = lambda p: None if kept is None else [each[p] for each in kept]
        self._parts = {
            p: ClientStore(where, like, size, versions[p], kept=of_part(p))
            for p, where, size in _parts(directory, population, self._num_parts)
        }

    def settle(self) -> Versions:
        """Returns versions with everything written so far; exact for this process's parts."""
        return tuple(
            self._parts[p].settle() if p in self._parts else version
            for p, version in enumerate(self._versions)
        )

    def read(self, client_ids: np.ndarray) -> tuple[PyTree, np.ndarray]:
        """Returns states `[clients, ...]`, zeros where none exists, and which of them exist."""
        if self._num_parts == 1 and jax.process_count() == 1:
            return self._parts[0].read(client_ids)
        blank = lambda x: np.zeros((len(client_ids), *x.shape), x.dtype)
        states, found = jax.tree.map(blank, self._like), np.zeros(len(client_ids), bool)
        for p, part in self._parts.items():
            lanes = np.flatnonzero((client_ids >= 0) & (client_ids % self._num_parts == p))
            rows, found[lanes] = part.read(client_ids[lanes] // self._num_parts)
            jax.tree.map(lambda x, row, lanes=lanes: x.__setitem__(lanes, row), states, rows)
        if jax.process_count() == 1 or not jax.tree.leaves(states):
            return states, found
        return self._from_owners((states, found), client_ids)

    def seen(self) -> np.ndarray:
        """Returns the ids of the clients that have a state, ascending."""
        here = np.zeros(self._population, bool)
        for p, part in self._parts.items():
            here[part.seen() * self._num_parts + p] = True
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            here = multihost_utils.process_allgather(here).any(axis=0)
        return np.flatnonzero(here)

    def write(self, client_ids: np.ndarray, states: PyTree) -> None:
        """Stores states `[clients, ...]` of the clients of this process; ids are not negative."""
        if self._num_parts == 1 and jax.process_count() == 1:
            return self._parts[0].write(client_ids, states)
        for p, part in self._parts.items():
            mine = np.flatnonzero(client_ids % self._num_parts == p)
            rows = jax.tree.map(lambda x, mine=mine: x[mine], states)
            part.write(client_ids[mine] // self._num_parts, rows)

    def rewind(self, versions: Versions) -> None:
        """Discards everything after `versions`."""
        for p, part in self._parts.items():
            part.rewind(versions[p])

    def sync(self) -> Versions:
        """Writes everything to disk, and returns the versions of all parts."""
        known = np.zeros((self._num_parts, len(Version._fields)), np.uint32)
        for p, part in self._parts.items():
            known[p] = part.sync()
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            known = multihost_utils.process_allgather(known).sum(axis=0, dtype=np.uint32)
        self._versions = [Version(*row) for row in known.tolist()]
        return tuple(self._versions)

    def keep(self, versions: Sequence[Versions]) -> None:
        """Keeps these versions readable, each of all parts, beside the current one."""
        for p, part in self._parts.items():
            part.keep([each[p] for each in versions])

    def close(self) -> None:
        """Closes the files."""
        for part in self._parts.values():
            part.close()

    def _from_owners(self, rows: PyTree, client_ids: np.ndarray) -> PyTree:
        """Returns `rows` with each lane taken from the process that owns its client."""
        from jax.experimental import multihost_utils

        owners = np.maximum(client_ids, 0) % self._num_parts % jax.process_count()
        lanes = np.arange(len(client_ids))
        everyones = multihost_utils.process_allgather(rows)
        return jax.tree.map(lambda x: x[owners, lanes], everyones)


def check_versions(directory: Path, like: PyTree, population: int, versions: Versions) -> None:
    """Checks the data of some versions in this process's parts, and changes nothing.

    Args:
      directory: of all parts.
      like: shapes and dtypes of one client's state.
      population: number of clients.
      versions: of each part.

    Raises:
      DamagedError: naming what has changed since it was written.
    """
    for p, where, size in _parts(directory, population, len(versions)):
        check_version(where, like, size, versions[p])


def _parts(directory: Path, population: int, num_parts: int) -> Iterator[tuple[int, Path, int]]:
    """Returns an iterator over this process's parts: number, folder and number of clients."""
    for p in range(jax.process_index(), num_parts, jax.process_count()):
        where = directory if num_parts == 1 else directory / f"{p}-of-{num_parts}"
        yield p, where, -(-population // num_parts)
