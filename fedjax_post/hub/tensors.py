"""Tensors of files, read lazily and by name: safetensors in one file, or in shards with an index.

The format's own library reads the headers, so that what it refuses is refused here. Of its
answers, names in the order of their bytes, dtypes and shapes, follows where each tensor lies:
the format allows no gaps. The bytes are mapped here a strip at a time; the library would keep
the whole file mapped, or read a tensor anew for every strip of it.

Another format needs a function that returns `{name: Entry}`; everything after that is shared.
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
STRIP = 2**18  # numbers that are mapped, cast or coded at once
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
    """One stored tensor, not yet read."""

    where: str  # its file and its name in it, for messages
    dtype: np.dtype
    shape: tuple[int, ...]
    read_fn: Callable[[int, int], np.ndarray]  # (first row, the one after the last) -> rows

    def strips(self, dtype: Any) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the tensor in `dtype` by strips of rows, and where each starts.

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
        # a wider dtype holds what is stored, in more bytes to look at
        if not is_finite(stored if _widens(stored.dtype, dtype) else array):
            raise ValueError(
                f"{self.where} holds numbers that are NaN, infinite or too large for {dtype.name}; "
                "read another copy of these weights, or choose a wider dtype"
            )
        return array


def _widens(stored: np.dtype, dtype: np.dtype) -> bool:
    return stored.itemsize < dtype.itemsize and np.can_cast(stored, dtype)


def is_finite(array: np.ndarray) -> bool:
    """Returns whether all numbers are finite, by the bits of their exponents.

    Four times faster in float32 than `np.isfinite(array).all()`, thirty times in 16 bits.
    """
    bits = array.view(f"u{array.itemsize}")
    infinite = np.asarray(np.inf, array.dtype).view(bits.dtype)
    return bool((bits & infinite).max(initial=0) < infinite)


def read_folder(directory: Path) -> dict[str, Entry]:
    """Returns every tensor of a model folder, unread, by the name that it has there.

    Where both lie there, one file wins over an index with its shards, as in transformers.

    Raises:
      OSError: if there are no weights, or a shard of the index is missing.
      ValueError: if a file is damaged, or the index leads out of the folder.
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
                "shards must lie beside the index, under a plain name"
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
            raise ValueError(f"{index}: two of its shards hold {shorten(twice)}")
        entries.update(found)
    absent = sorted(set(weight_map) - set(entries))
    if absent:
        raise ValueError(f"{index}: its shards lack {shorten(absent)}; download them again")
    return entries


def read_file(path: Path) -> dict[str, Entry]:
    """Returns the tensors of one safetensors file, unread.

    Raises:
      OSError: if there is no such file, or it cannot be read.
      ValueError: if the format's library refuses it, or a dtype is not in `DTYPES`.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            kinds = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file: {error}; download it again"
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
    """Rows of a tensor, as a view of the mapped file."""
    shape = (stop - start, *shape[1:])
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.zeros(shape, dtype)
    offset += start * math.prod(shape[1:]) * dtype.itemsize
    return np.memmap(path, np.uint8, "r", offset, (size,)).view(dtype).reshape(shape)


def write_file(path: Path, tensors: dict[str, np.ndarray], *, run: str = "") -> None:
    """Writes a safetensors file, whole or not at all, readable as any other new file.

    Args:
      path: replaced if it exists.
      tensors: contiguous arrays by name.
      run: what made them, kept as metadata.
    """
    from safetensors.numpy import save_file

    unfinished = path.with_name(path.name + ".partial")
    unfinished.unlink(missing_ok=True)
    unfinished.touch()
    mode = unfinished.stat().st_mode  # the library would make it readable by its owner alone
    # the library writes two entries in any order, and equal runs are to write equal bytes
    metadata = {"format": "pt", "run": run} if run else {"format": "pt"}
    save_file(tensors, str(unfinished), metadata=metadata)
    unfinished.chmod(mode)
    os.replace(unfinished, path)


def remove_shards(directory: Path) -> None:
    """Removes an index and its shards, which a single file has replaced."""
    (directory / INDEX).unlink(missing_ok=True)
    for path in directory.glob(SHARDS):
        path.unlink()


def shorten(names: Iterable[str], limit: int = 6) -> str:
    """Returns at most `limit` of the names, and how many are left out."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
