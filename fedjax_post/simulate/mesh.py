"""The mesh executor: the engine's functions, compiled for several devices.

A mesh has two axes. The lanes of a chunk are distributed along `clients`: every device trains
its own clients, and their messages are summed over the axis. The frozen base is distributed along
`model`: each matrix is split by its output or its input, as in Megatron-LM (Shoeybi et al.,
arXiv:1909.08053), so that a layer costs two sums over the axis and no device ever holds a whole
matrix. What the federation learns is replicated on every device.

Only the shardings of inputs and outputs are specified; XLA chooses those in between.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjax_post.core import engine
from fedjax_post.core.algorithm import Aggregate, Algorithm, PyTree
from fedjax_post.model.views import LanguageModel
from fedjax_post.simulate import programs
from fedjax_post.simulate.programs import Chunk, Programs, Stored

CLIENTS, MODEL = "clients", "model"
_BY_OUTPUT = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")
_BY_INPUT = ("o_proj", "down_proj")


def make_mesh(axes: str) -> Mesh:
    """Returns a mesh of all devices from sizes such as "clients:4,model:2".

    An axis that is left out has size 1. With several processes, the devices of each are
    contiguous, and so are its lanes.

    Raises:
      ValueError: for other axes, sizes that are not positive integers, or a product that differs
        from the number of devices.

    >>> make_mesh(f"clients:{jax.device_count()}").axis_names
    ('clients', 'model')
    """
    sizes = {CLIENTS: 1, MODEL: 1}
    given = [part.partition(":") for part in axes.split(",")]
    names = [name.strip() for name, _, _ in given]
    if len(set(names)) < len(names) or not set(names) <= set(sizes):
        raise ValueError(
            f"mesh={axes} names axes {names}; there are {CLIENTS} and {MODEL}, each at most "
            "once, as in clients:4,model:2"
        )
    for name, (_, _, size) in zip(names, given, strict=True):
        if not size.strip().isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh={axes} gives {name} the size {size!r}; give a whole number of devices, "
                "as in clients:4,model:2"
            )
        sizes[name] = int(size)
    product, there, count = sizes[CLIENTS] * sizes[MODEL], jax.device_count(), jax.process_count()
    if product != there:
        raise ValueError(
            f"mesh={axes} is for {product} devices and there are {there}"
            f"{f' in {count} processes' if count > 1 else ''}; give axes with that "
            f"product, such as {CLIENTS}:{there}, or more devices (on a CPU: "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={-(-product // count)})"
        )
    shape, both = tuple(sizes.values()), tuple(sizes)
    if count == 1:
        return _check_mesh(jax.make_mesh(shape, both, axis_types=(AxisType.Auto,) * 2))
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return _check_mesh(Mesh(np.reshape(devices, shape), both))


def on_mesh(mesh: Mesh) -> Callable[..., Programs]:
    """Returns an executor for `Plan` that runs an algorithm on the devices of a mesh.

    Results equal those of `device` up to the order of floating-point sums. A model is put on the
    mesh before its first use, if it is not there yet. Widths of chunks are rounded up to a
    multiple of the size of the axis "clients".

    Args:
      mesh: with an axis "clients", an axis "model", or both.

    Raises:
      ValueError: for a mesh with other axes; at the first round, for a model that an axis of
        this size cannot split.
    """
    mesh = _check_mesh(mesh)
    lanes, whole = _lanes(mesh), NamedSharding(mesh, PartitionSpec())

    def executor(
        algorithm: Algorithm,
        telemetry: Aggregate = engine.NO_TELEMETRY,
        *,
        keep_messages: bool = False,
    ) -> Programs:
        compiled = compile_for(algorithm, mesh, telemetry, keep_messages=keep_messages)
        placed = _cache_last(partial(put_on_mesh, mesh=mesh))

        def visit(model, replica, total, chunk: Chunk, stored: Stored, run_key):
            ids = _spread(chunk.client_ids, lanes)
            data = _spread(chunk.data, lanes, len(chunk.client_ids))
            chunk = chunk._replace(client_ids=ids, data=data)
            stored = _spread(stored, lanes)
            replica = jax.device_put(replica, whole)
            return compiled.visit(placed(model), replica, total, chunk, stored, run_key)

        return compiled._replace(
            broadcast=lambda state: compiled.broadcast(jax.device_put(state, whole)),
            start=lambda model, *rest: compiled.start(placed(model), *rest),
            visit=visit,
            close=lambda total, state: compiled.close(total, jax.device_put(state, whole)),
        )

    return executor


def compile_for(
    algorithm: Algorithm,
    mesh: Mesh,
    telemetry: Aggregate = engine.NO_TELEMETRY,
    *,
    keep_messages: bool = False,
) -> Programs:
    """Returns the compiled programs alone; their inputs must be on the mesh already.

    Client states are returned distributed by lane. All other results are replicated: what the
    federation learns, and the reports, a few numbers per client that every process reads.

    Args:
      algorithm: the algorithm.
      mesh: with axes as for `on_mesh`.
      telemetry: see `core.telemetry`.
      keep_messages: whether reports hold the clients' messages.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    visit = programs.visit_chunk
    visit = visit if keep_messages else programs.without_messages(visit)
    jit = partial(jax.jit, out_shardings=whole)
    return Programs(
        broadcast=jit(partial(engine.broadcast, algorithm)),
        start=jit(partial(programs.start, algorithm, telemetry=telemetry), static_argnums=3),
        visit=jax.jit(
            partial(visit, algorithm, telemetry=telemetry),
            donate_argnums=2,
            out_shardings=(whole, _lanes(mesh), whole),
        ),
        close=jit(partial(programs.close, algorithm, telemetry=telemetry)),
        unit=mesh.shape.get(CLIENTS, 1),
        local=partial(_local, _lanes(mesh)),
    )


def put_on_mesh(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns a tree on the mesh: decoders split along "model" by `weight_spec`, others replicated.

    Arrays that are there already are not moved. To evaluate on the mesh, put the model and a
    restored state there. To avoid that a device ever holds a whole decoder, load it with
    `weight_sharding`.

    Raises:
      ValueError: if the heads or widths of a decoder are not multiples of the axis.
    """

    def place(part):
        if not isinstance(part, LanguageModel):
            return _put(part, NamedSharding(mesh, PartitionSpec()))
        check_divides(part.config, mesh)
        put = lambda path, leaf: _put(leaf, _sharding_of(path, leaf, mesh))
        return jax.tree_util.tree_map_with_path(put, part)

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, LanguageModel))


def weight_sharding(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Returns the `sharding_fn` for `load_model`: the sharding of a weight by path and shape."""
    size = mesh.shape.get(MODEL, 1)
    return lambda path, shape: NamedSharding(mesh, weight_spec(path, shape, size))


def weight_spec(path: str, shape: tuple[int, ...], size: int) -> PartitionSpec:
    """Returns how a decoder's leaf is split along a model axis of `size` devices.

    q, k, v, gate and up are split by their output, o and down by their input, and the embedding
    and head by vocabulary if that is a multiple of `size`. Quantized codes and their scales are
    split like the weights that they represent. Adapters and norms are replicated.

    Args:
      path: dotted, such as "layers.attention.q_proj.kernel".
      shape: of the leaf, `[num_layers, ...]` below "layers".
      size: number of devices of the axis.

    Raises:
      ValueError: if a matrix cannot be divided evenly, naming it.

    >>> tuple(weight_spec("layers.attention.q_proj.kernel", (2, 8, 16), 2))
    (None, None, 'model')
    """
    *above, leaf = path.split(".")
    layer, axis = above[-1] if above else "", None
    if leaf in ("kernel", "codes", "scales", "bias") and layer in _BY_OUTPUT:
        axis = len(shape) - 1
    elif leaf in ("kernel", "codes", "scales") and layer in _BY_INPUT:
        axis = len(shape) - 2
    elif leaf in ("embedding", "head", "head_bias"):
        axis = 0 if leaf == "embedding" else len(shape) - 1
        axis = axis if shape[axis] % size == 0 else None
    if axis is None or size == 1:
        return PartitionSpec()
    if shape[axis] % size:
        blocks = "; its codes' blocks of rows must divide too" if leaf == "scales" else ""
        raise ValueError(
            f"`mesh` with {MODEL}:{size} cannot split {path} of shape {shape} along axis "
            f"{axis}{blocks}; give {MODEL} a size that divides {shape[axis]}"
        )
    return PartitionSpec(*(MODEL if i == axis else None for i in range(len(shape))))


def check_divides(config: Any, mesh: Mesh) -> None:
    """Checks that a decoder's heads and width can be divided by the size of the model axis.

    Raises:
      ValueError: naming the number that cannot.
    """
    size = mesh.shape.get(MODEL, 1)
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        if (count := getattr(config, name)) % size:
            raise ValueError(
                f"`mesh` with {MODEL}:{size} cannot share {name}={count} of this model; give "
                f"{MODEL} a size that divides it, and {CLIENTS} the rest of the devices"
            )


def _check_mesh(mesh: Mesh) -> Mesh:
    """Returns a valid mesh, on which XLA chooses the shardings between input and output."""
    names = set(mesh.axis_names)
    if not names or not names <= {CLIENTS, MODEL}:
        raise ValueError(f"a mesh has axes {CLIENTS} and {MODEL}, got {mesh.axis_names}")
    _check_threads(mesh)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(names))


def _check_threads(mesh: Mesh) -> None:
    """Raises ValueError if the devices of a CPU have too few threads and could deadlock.

    A device may run its collective sums in any order. Two devices that begin with different sums
    each block a thread until another thread takes up the other sum.
    """
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if len(local) < 2 or local[0].platform != "cpu":
        return
    given = os.environ.get("NPROC", "")
    there = int(given) if given.isdecimal() else len(os.sched_getaffinity(0))
    if there < 4 * len(local):
        raise ValueError(
            f"{len(local)} CPU devices on {there} threads may wait for each other forever; set "
            f"NPROC={4 * len(local)} in the environment before the program starts"
        )


def _lanes(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(CLIENTS if CLIENTS in mesh.shape else None))


def _local(lanes: NamedSharding, count: int) -> slice:
    """Returns the lanes of a chunk of `count` that are on this process's devices."""
    places = lanes.addressable_devices_indices_map((count,)).values()
    held = [index[0] for index in places if index is not None]
    return slice(
        min(part.start or 0 for part in held),
        max(count if part.stop is None else part.stop for part in held),
    )


def _sharding_of(path: tuple, leaf: Any, mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a decoder's leaf by its path: `variables`, collection, names."""
    dotted = ".".join(key.key for key in path[2:])
    return NamedSharding(mesh, weight_spec(dotted, leaf.shape, mesh.shape.get(MODEL, 1)))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array, which every process has, on the mesh."""
    there = isinstance(x, jax.Array) and not x.is_fully_addressable
    if there or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _spread(tree: PyTree, lanes: NamedSharding, num_lanes: int | None = None) -> PyTree:
    """Returns arrays distributed by lane.

    The given arrays hold all lanes, or those of this process if `num_lanes`, the number of all,
    is given.
    """
    if lanes.is_fully_addressable:
        return jax.device_put(tree, lanes)
    if num_lanes is None:
        return jax.tree.map(lambda x: _put(x, lanes), tree)

    def whole(x):
        shape = (num_lanes, *x.shape[1:])
        return jax.make_array_from_process_local_data(lanes, x, shape)

    return jax.tree.map(whole, tree)


def _cache_last(place: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """Returns `place` with its last result cached: a run passes the same model at every visit."""
    last: tuple[Any, Any] = None, None

    def placed(model):
        nonlocal last
        if last[0] is not model:
            last = model, place(model)
        return last[1]

    return placed
