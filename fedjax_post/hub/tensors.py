"""Reads tensors lazily and by name from safetensors: one file, or shards with an index.

The library of the format reads the headers, so that files which it refuses are refused here too.
It returns names in the order of their bytes, dtypes and shapes. The place of each tensor follows
from these, since the format allows no gaps. The bytes are memory-mapped here in strips; the
library would keep the whole file mapped, or read a tensor again for every strip.

To support another format, write a function that returns `{name: Entry}`; all later steps are
shared.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fedjax_post.hub.documents import check_regular, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARDS = "model-*-of-*.safetensors"
STRIP = 2**18  # numbers that are mapped, cast or quantized at once
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "U64": np.uint64,
    "I32": np.int32,
    "U32": np.uint32,
    "I16": np.int16,
    "U16": np.uint16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Entry(NamedTuple):
    """One stored tensor, which is read on demand."""

    where: str  # file and name of the tensor, for messages
    dtype: np.dtype
    shape: tuple[int, ...]
    read_fn: Callable[[int, int], np.ndarray]  # (first row, row after the last) -> rows

    def strips(self, dtype: Any) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, rows) of the tensor in `dtype`, in strips.

        Raises:
          ValueError: at the first number that is not finite.
        """
        rows = max(1, STRIP // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], rows):
            yield start, self._cast(start, min(start + rows, self.shape[0]), np.dtype(dtype))

    def read(self, dtype: Any) -> np.ndarray:
        """Returns the whole tensor in `dtype`.

        Raises:
          ValueError: if one of its numbers is not finite.
        """
        return self._cast(0, self.shape[0], np.dtype(dtype))

    def _cast(self, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
        stored = self.read_fn(start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            array = stored.astype(dtype, copy=False)
        # a wider dtype represents every stored number, but has more bytes to check
        if not is_finite(stored if _widens(stored.dtype, dtype) else array):
            raise ValueError(
                f"{self.where} holds numbers that are NaN, infinite or too large for {dtype.name}; "
                "read another copy of these weights, or choose a wider dtype"
            )
        return array


def _widens(stored: np.dtype, dtype: np.dtype) -> bool:
    return stored.itemsize < dtype.itemsize and np.can_cast(stored, dtype)


def is_finite(array: np.ndarray) -> bool:
    """Returns whether all numbers are finite, from the bits of their exponents.

    This is four times faster than `np.isfinite(array).all()` in float32, and thirty times in
    16-bit dtypes.
    """
    bits = array.view(f"u{array.itemsize}")
    infinite = np.asarray(np.inf, array.dtype).view(bits.dtype)
    return bool((bits & infinite).max(initial=0) < infinite)


def read_folder(directory: Path) -> dict[str, Entry]:
    """Returns every tensor of a model folder, not yet read, by its name in the folder.

    If there are both one file and an index with shards, the file is used, as in transformers.

    Raises:
      OSError: if there are no weights, or a shard of the index is missing.
      ValueError: if a file is damaged, or the index names a file outside the folder.
    """
    if (directory / SINGLE).exists():
        return read_file(directory / SINGLE)
    if (directory / INDEX).exists():
        return _read_shards(directory)
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    raise FileNotFoundError(
        f"{directory} has no {SINGLE} and no {INDEX} (it has {shorten(found)}); "
        "convert other formats to safetensors first"
    )


def _read_shards(directory: Path) -> dict[str, Entry]:
    index = directory / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map of names and files; download it again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise ValueError(
                f"{index}: weight_map names the file {shard!r}; "
                "shards must be in the folder of the index, under a plain name"
            )
    entries: dict[str, Entry] = {}
    for shard in sorted(set(weight_map.values())):
        if not (directory / shard).exists():
            raise FileNotFoundError(
                f"{directory}: shard {shard} of {INDEX} is missing; download it again"
            )
        found = read_file(directory / shard)
        twice = sorted(set(found) & set(entries))
        if twice:
            raise ValueError(f"{index}: two of its shards contain {shorten(twice)}")
        entries.update(found)
    absent = sorted(set(weight_map) - set(entries))
    if absent:
        raise ValueError(f"{index}: its shards lack {shorten(absent)}; download them again")
    return entries


def read_file(path: Path) -> dict[str, Entry]:
    """Returns the tensors of one safetensors file, not yet read.

    Raises:
      OSError: if there is no such file, or it cannot be read.
      ValueError: if the library of the format refuses it, or a dtype is not in `DTYPES`.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            kinds = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file: {error}; download it again"
        ) from None
    unknown = sorted({kind for kind, _ in kinds.values()} - set(DTYPES))
    if unknown:
        raise ValueError(f"{path}: dtypes {unknown} are not supported; only {sorted(DTYPES)} are")
    sizes = [math.prod(shape) * np.dtype(DTYPES[kind]).itemsize for kind, shape in kinds.values()]
    offset, entries = path.stat().st_size - sum(sizes), {}
    for (name, (kind, shape)), size in zip(kinds.items(), sizes, strict=True):
        dtype = np.dtype(DTYPES[kind])
        rows = partial(_rows, path, offset=offset, dtype=dtype, shape=tuple(shape))
        entries[name] = Entry(f"{path}: {name}", dtype, tuple(shape), rows)
        offset += size
    return entries


def _rows(path, start, stop, *, offset, dtype, shape):
    """Returns rows of a tensor, as a view of the mapped file."""
    shape = (stop - start, *shape[1:])
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.zeros(shape, dtype)
    offset += start * math.prod(shape[1:]) * dtype.itemsize
    return np.memmap(path, np.uint8, "r", offset, (size,)).view(dtype).reshape(shape)


def write_file(path: Path, tensors: dict[str, np.ndarray], *, run: str = "") -> None:
    """Writes a safetensors file, either completely or not at all, with usual permissions.

    Args:
      path: replaced if it exists.
      tensors: contiguous arrays by name.
      run: description of the run that made them, kept as metadata.
    """
    from safetensors.numpy import save_file

    unfinished = path.with_name(path.name + ".partial")
    unfinished.unlink(missing_ok=True)
    unfinished.touch()
    mode = unfinished.stat().st_mode  # the library would restrict the file to its owner
    # the library does not fix the order of two entries, but equal runs must write equal bytes
    metadata = {"format": "pt", "run": run} if run else {"format": "pt"}
    save_file(tensors, str(unfinished), metadata=metadata)
    unfinished.chmod(mode)
    os.replace(unfinished, path)


def remove_shards(directory: Path) -> None:
    """Removes an index and its shards, after a single file has replaced them."""
    (directory / INDEX).unlink(missing_ok=True)
    for path in directory.glob(SHARDS):
        path.unlink()


def shorten(names: Iterable[str], limit: int = 6) -> str:
    """Returns at most `limit` of the names, and the number of further names."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
