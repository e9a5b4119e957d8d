"""The memory of a chunk, as reported by its compiled program, and the largest chunk that fits."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.core import engine
from fedjax_post.core.algorithm import Algorithm, PyTree
from fedjax_post.data.clients import Clients
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.programs import Chunk, Programs, Stored, device
from fedjax_post.simulate.run import client_state_like

# Share of the memory to use: the next chunk is prepared while one is computed.
_SHARE = 0.9


class MemoryUse(NamedTuple):
    """Bytes on the device while a chunk is visited."""

    arguments: int  # the model, the replica, the total, and the chunk's data and states
    outputs: int  # other than those that reuse the memory of an argument
    temporaries: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(self)


def visit_memory(
    algorithm: Algorithm,
    model: PyTree,
    clients: Clients,
    *,
    params: PyTree,
    chunk_size: int,
    programs: Programs | None = None,
) -> MemoryUse:
    """Returns the memory of a chunk's visit; compiles it, but runs nothing.

    Args:
      algorithm: as given to `run`.
      model: as given to `run`, or its shapes.
      clients: as given to `run`.
      params: as given to `run`, or their shapes.
      chunk_size: number of clients.
      programs: of the executor; by default those of `device`.
    """
    programs = programs or device(algorithm)
    lanes = lambda tree: jax.tree.map(lambda x: _like(x, chunk_size), tree)
    data = jax.eval_shape(lambda: clients.visit(0, data_rng(0, 0, 0)))
    state = jax.eval_shape(lambda p: engine.init(algorithm, p), params)
    replica = jax.eval_shape(programs.broadcast, state)
    shape: Any = jax.ShapeDtypeStruct
    chunk = Chunk(shape((), np.int32), shape((chunk_size,), np.int32), lanes(data))
    start = lambda model, replica, data: programs.start(model, replica, data, chunk_size)
    total = jax.eval_shape(start, model, replica, chunk.data)
    stored = Stored(
        lanes(client_state_like(algorithm, model, clients, params)),
        shape((chunk_size,), bool),
    )
    key = jax.eval_shape(jax.random.key, 0)
    visit: Any = programs.visit
    lowered = visit.lower(model, replica, total, chunk, stored, key)
    found = lowered.compile().memory_analysis()
    return MemoryUse(
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )


def largest_chunk(
    algorithm: Algorithm,
    model: PyTree,
    clients: Clients,
    *,
    params: PyTree,
    at_most: int,
    num_bytes: int | None = None,
) -> int:
    """Returns the largest number of clients whose visit fits in memory, up to `at_most`.

    Memory is taken to grow linearly with the number of clients, and is measured for two and four.
    The result is compiled as well, and reduced until it fits.

    Args:
      algorithm: as given to `run`.
      model: as given to `run`.
      clients: as given to `run`.
      params: as given to `run`.
      at_most: upper limit, such as the size of a cohort.
      num_bytes: memory of the device; by default `device_bytes()`.

    Raises:
      ValueError: if not even one client fits.
    """
    free = int(_SHARE * (device_bytes() if num_bytes is None else num_bytes))
    used = lambda size: (
        visit_memory(algorithm, model, clients, params=params, chunk_size=size).total
    )
    two, four = used(2), used(4)
    each = max(1, (four - two) // 2)
    size = min(at_most, 2 + (free - two) // each)
    while size > 1 and used(size) > free:
        size = size * 9 // 10
    if size < 1 or (size == 1 and used(1) > free):
        raise ValueError(
            f"chunk_size=auto: one client takes about {two - each:,} bytes and {free:,} are "
            "free; lower `batch_size` or `max_length`, use `remat` or `quantize`"
        )
    return int(size)


def device_bytes() -> int:
    """Returns the bytes that programs may use: the device's limit, or half of a CPU's memory."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _like(leaf: jax.ShapeDtypeStruct, chunk_size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((chunk_size, *leaf.shape), leaf.dtype)
