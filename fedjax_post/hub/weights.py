"""Safetensors files as lazily read arrays: one file or an index of shards, no torch."""

import functools
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from fedjax_post.hub.families import Family
from fedjax_post.model.codes import encode
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.decoder import weight_shapes
from fedjax_post.model.quantise import is_coded

PyTree = Any
# (dotted path below "params", shape) -> where the leaf lives
ShardingFn = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
STRIP = 2**20  # weights that are mapped, cast or coded at once
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Entry(NamedTuple):
    """One stored tensor, not yet read."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns the tensor, or its rows from `start` to `stop`, as a view of the mapped file."""
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.path}: dtype {self.dtype} is not one of {sorted(DTYPES)}")
        dtype = np.dtype(DTYPES[self.dtype])
        shape = self.shape if stop is None else (stop - start, *self.shape[1:])
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return np.zeros(shape, dtype)
        offset = self.offset + start * math.prod(self.shape[1:]) * dtype.itemsize
        return np.memmap(self.path, np.uint8, "r", offset, (size,)).view(dtype).reshape(shape)

    def strips(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the tensor by strips of rows and where each starts: no more is mapped at once."""
        rows = max(1, STRIP // math.prod(self.shape[1:]))
        for start in range(0, self.shape[0], rows):
            yield start, self.read(start, min(start + rows, self.shape[0]))


def read_entries(directory: Path) -> dict[str, Entry]:
    """Returns every tensor of a model folder, unread, by name.

    Raises:
      FileNotFoundError: if there are no weights, or a shard of the index is missing.
      ValueError: if a file is truncated or is not a safetensors file.
    """
    index = directory / INDEX
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        entries: dict[str, Entry] = {}
        for shard in sorted(set(weight_map.values())):
            if not (directory / shard).exists():
                raise FileNotFoundError(
                    f"{directory}: shard {shard} of {INDEX} is missing; download it again"
                )
            entries.update(read_header(directory / shard))
        absent = sorted(set(weight_map) - set(entries))
        if absent:
            raise ValueError(f"{index}: its shards lack {shorten(absent)}; download them again")
        return entries
    if (directory / SINGLE).exists():
        return read_header(directory / SINGLE)
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    raise FileNotFoundError(
        f"{directory} has no {SINGLE} and no {INDEX} (it has {found}); "
        "convert other formats to safetensors first"
    )


def read_header(path: Path) -> dict[str, Entry]:
    """Returns the tensors of one safetensors file, checked against its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size + 1
        if length + 8 > size:
            raise ValueError(
                f"{path} is truncated or no safetensors file: {size} bytes, "
                f"header of {length}; download it again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ValueError(f"{path} is no safetensors file: its header is not JSON") from None
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > size:
        raise ValueError(
            f"{path} is truncated: {size} bytes, its header promises {end}; download it again"
        )
    return {
        name: Entry(path, info["dtype"], tuple(info["shape"]), 8 + length + info["data_offsets"][0])
        for name, info in header.items()
    }


def load_weights(
    directory: Path,
    family: Family,
    *,
    config: DecoderConfig,
    dtype: Any,
    sharding_fn: ShardingFn | None = None,
    quantise: str = "none",
) -> dict[str, PyTree]:
    """Returns the flax collections of a model folder: "params", and "quantised" where asked for.

    Tensors are read in strips into stacked arrays of the target dtype, or of codes,
    so that the peak of host memory is the model as it will be, and a few strips.

    Raises:
      ValueError: on missing, extra or wrongly shaped tensors, naming them.
    """
    entries = read_entries(directory)
    if family.prefix and not any(name.startswith(family.prefix) for name in entries):
        entries = {_with_prefix(name, family): entry for name, entry in entries.items()}
    if family.inside and any(name.startswith(family.inside) for name in entries):
        text = {name for name in entries if name.startswith(family.inside)}
        entries = {name.removeprefix(family.inside): entries[name] for name in text}
    check_tensors(entries, family, where=str(directory), config=config)
    collections: PyTree = {"params": {}}
    for path, shape in weight_shapes(config).items():
        stored = family.tensors[path]
        count = shape[0] if "{i}" in stored.name else 1
        tensors = [entries[stored.name.format(i=i)] for i in range(count)]
        at = tuple(path.split("."))
        if quantise != "none" and is_coded(at):
            codes, scales = _code(tensors, shape, stored.transposed, dtype=dtype, kind=quantise)
            leaves = {
                ("quantised", *at[:-1], "codes"): codes,
                ("quantised", *at[:-1], "scales"): scales,
            }
        else:
            array = _aligned(shape, np.dtype(dtype))
            rows = array if "{i}" in stored.name else array[None]
            for row, tensor in zip(rows, tensors, strict=True):
                for start, strip in tensor.strips():
                    _fill(row, strip, start, stored.transposed)
            leaves = {("params", *at): array}
        for place, array in leaves.items():
            where = None if sharding_fn is None else sharding_fn(".".join(place[1:]), array.shape)
            _put(collections, place, _placed(array, where))
    return collections


def _code(
    tensors: list[Entry], shape: tuple[int, ...], transposed: bool, *, dtype: Any, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of stacked kernels; a stored tensor that is not transposed is one strip."""
    like = jax.eval_shape(functools.partial(encode, kind=kind), jax.ShapeDtypeStruct(shape, dtype))
    codes, scales = (_aligned(leaf.shape, leaf.dtype) for leaf in like)
    for i, tensor in enumerate(tensors):
        for start, strip in tensor.strips() if transposed else [(0, tensor.read().T)]:
            parts = encode(strip.astype(dtype).T, kind)
            columns = slice(start, start + len(strip))
            codes[i, :, columns], scales[i, :, columns] = parts
    return codes, scales


def _placed(array: np.ndarray, where: jax.sharding.Sharding | None) -> jax.Array:
    """The array where it lives; each of several processes has read it, and takes its part."""
    if where is None or where.is_fully_addressable:
        return jax.device_put(array, where, may_alias=where is None)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def _put(tree: PyTree, place: tuple[str, ...], leaf: Any) -> None:
    for parent in place[:-1]:
        tree = tree.setdefault(parent, {})
    tree[place[-1]] = leaf


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array on a 64 byte boundary, which jax on a CPU adopts without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _fill(target: np.ndarray, strip: np.ndarray, start: int, transposed: bool) -> None:
    """Casts rows of a stored tensor into their place; by 128, four times faster than at once."""
    if not transposed:
        target[start : start + len(strip)] = strip
        return
    for i in range(0, len(strip), 128):
        part = strip[i : i + 128].astype(target.dtype).T
        target[:, start + i : start + i + part.shape[1]] = part


def expected_tensors(family: Family, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and stored shape of every tensor that a folder must hold."""
    expected: dict[str, tuple[int, ...]] = {}
    for path, shape in weight_shapes(config).items():
        stored = family.tensors[path]
        layered = "{i}" in stored.name
        shape = shape[1:] if layered else shape
        shape = shape[::-1] if stored.transposed else shape
        for i in range(config.num_layers if layered else 1):
            expected[stored.name.format(i=i)] = shape
    return expected


def check_tensors(
    entries: dict[str, Entry], family: Family, *, where: str, config: DecoderConfig
) -> None:
    """Refuses a folder whose tensors are not exactly the expected ones."""
    expected = expected_tensors(family, config)
    missing = sorted(set(expected) - set(entries))
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} tensors are missing: "
            f"{shorten(f'{name} {expected[name]}' for name in missing)}; "
            "does config.json belong to these weights?"
        )
    ignored = list(family.ignored)
    if config.tied_head and "head" in family.tensors:
        ignored.append(re.escape(family.tensors["head"].name))
    extra = [
        name
        for name in sorted(set(entries) - set(expected))
        if not any(re.fullmatch(pattern, name) for pattern in ignored)
    ]
    if extra:
        raise ValueError(
            f"{where}: {len(extra)} tensors have no place in a {config.model_type}: "
            f"{shorten(f'{name} {entries[name].shape}' for name in extra)}; "
            "does config.json belong to these weights?"
        )
    wrong = [name for name in expected if entries[name].shape != expected[name]]
    if wrong:
        listed = (f"{n} is {entries[n].shape}, expected {expected[n]}" for n in wrong)
        raise ValueError(f"{where}: wrong shapes: {shorten(listed)}; compare with config.json")


def write_weights(
    path: Path,
    weights: PyTree,
    *,
    family: Family,
    config: DecoderConfig,
    dtype: Any,
    run: str = "",
) -> None:
    """Writes the collection "params" as one safetensors file under the family's names."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for ours in weight_shapes(config):
        leaf = weights
        for part in ours.split("."):
            leaf = leaf[part]
        stored = family.tensors[ours]
        array = np.asarray(leaf.astype(dtype))
        rows = array if "{i}" in stored.name else array[None]
        for i, row in enumerate(rows):
            row = row.T if stored.transposed else row
            tensors[stored.name.format(i=i)] = np.ascontiguousarray(row)
    save_file(tensors, str(path), metadata={"format": "pt", "run": run})


def _with_prefix(name: str, family: Family) -> str:
    """The full name of a tensor in a file that leaves the family's prefix out."""
    heads = {tensor.name for tensor in family.tensors.values()}
    return name if name in heads else family.prefix + name


def shorten(names: Iterable[str], limit: int = 6) -> str:
    """Returns at most `limit` of the names, and how many are left out."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
