"""The container: metadata and where each tensor lies, checked before anything of it is used.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
The `gguf` library decodes blocks; its own reader of headers does not return on some damaged files.
"""

import functools
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.hub.documents import check_regular

_VERSIONS = 2, 3
_STRING, _ARRAY = 8, 9
# the code of a scalar type -> its struct format
_SCALARS = dict(zip([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12], "BbHhIif?Qqd", strict=True))
_MOST_AXES = 4


class Stored(NamedTuple):
    """One tensor of the file."""

    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # rows first, as numpy and Hugging Face files have it
    offset: int  # of its first byte in the file
    row_bytes: int  # of one row, which is whole blocks


class Gguf(NamedTuple):
    """A checked file."""

    path: Path
    fields: Mapping[str, Any]  # numbers, booleans, strings, and lists of these
    tensors: Mapping[str, Stored]


def is_gguf(path: Path) -> bool:
    """Returns whether a path is named like a GGUF file."""
    return path.suffix.lower() == ".gguf"


def read_gguf(path: Path) -> Gguf:
    """Returns the header of a file; of its weights nothing is read.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: without the library `gguf`, naming the extra that brings it.
      ValueError: if the file is damaged, truncated, one of several parts, or of a version or a
        byte order that is not supported.
    """
    check_regular(path)
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)  # config, tokenizer and weights ask for the same file
def _read(path: Path, size: int, changed: int) -> Gguf:
    del changed
    if size < 24:
        raise ValueError(f"{path} is too short for a GGUF file; download it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Parser(path, data).parse()
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
            message = f"{path} is truncated or damaged: {error}; download it again"
            raise ValueError(message) from None


class _Parser:
    """A position in the header, which moves on as values are read."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0

    def parse(self) -> Gguf:
        magic, number = self.data[:4], self.scalar("I", at=4)
        if magic != b"GGUF":
            raise ValueError(f"{self.path} is no GGUF file: it begins with {magic!r}")
        if number not in _VERSIONS:
            raise ValueError(
                f"{self.path} is GGUF of version {number}, or of a machine of another byte order; "
                f"versions {_VERSIONS} are read; convert the model again"
            )
        num_tensors, num_fields = self.scalar("Q", at=8), self.scalar("Q")
        fields = dict(self.unique("field", num_fields, self.field))
        if fields.get("split.count", 1) not in (0, 1):
            raise ValueError(
                f"{self.path} is one of {fields['split.count']} parts; merge them with "
                "llama-gguf-split --merge"
            )
        infos = dict(self.unique("tensor", num_tensors, self.tensor))
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment={alignment} is no power of two")
        start = -(-self.at // alignment) * alignment
        tensors = {}
        for name, stored in infos.items():
            tensors[name] = stored._replace(offset=start + stored.offset)
            end = tensors[name].offset + stored.row_bytes * math.prod(stored.shape[:-1])
            if end > len(self.data):
                raise self.damaged(f"{name} ends at byte {end} of {len(self.data)}")
        return Gguf(self.path, fields, tensors)

    def damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.path} is truncated or damaged: {what}; download it again")

    def unique(self, what: str, count: int, read: Callable) -> Any:
        self.check_count(count, what)
        seen = set()
        for _ in range(count):
            name, value = read()
            if name in seen:
                raise self.damaged(f"the {what} {name} is there twice")
            seen.add(name)
            yield name, value

    def check_count(self, count: int, what: str) -> None:
        if count > len(self.data) - self.at:  # each takes a byte or more
            raise self.damaged(f"{count} of {what} at byte {self.at}")

    def scalar(self, format: str, at: int | None = None) -> Any:
        self.at = self.at if at is None else at
        (value,) = struct.unpack_from(f"<{format}", self.data, self.at)
        self.at += struct.calcsize(f"<{format}")
        # the shortest decimal of a float32: 1e-5, not 9.999999747378752e-06
        return float(str(np.float32(value))) if format == "f" else value

    def string(self) -> str:
        size = self.scalar("Q")
        self.check_count(size, "bytes of text")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def field(self) -> tuple[str, Any]:
        name = self.string()
        return name, self.value(self.scalar("I"), name)

    def value(self, kind: int, name: str) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.damaged(f"{name} has the type {kind}")
        kind, count = self.scalar("I"), self.scalar("Q")
        self.check_count(count, name)
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.damaged(f"{name} is a list of the type {kind}")
        format = f"<{count}{_SCALARS[kind]}"
        values = struct.unpack_from(format, self.data, self.at)
        self.at += struct.calcsize(format)
        return list(values)

    def tensor(self) -> tuple[str, Stored]:
        gguf = import_gguf()
        name, axes = self.string(), self.scalar("I")
        if not 1 <= axes <= _MOST_AXES:
            raise self.damaged(f"{name} has {axes} axes")
        shape = tuple(self.scalar("Q") for _ in range(axes))[::-1]
        code, offset = self.scalar("I"), self.scalar("Q")
        if code not in gguf.GGMLQuantizationType._value2member_map_:
            raise ValueError(
                f"{self.path}: {name} has the block type {code}, which gguf {version('gguf')} does "
                "not know; use a file with Q8_0 or Q4_K blocks"
            )
        kind = gguf.GGMLQuantizationType(code)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise self.damaged(f"{name} of shape {list(shape)} is not whole blocks of {block}")
        return name, Stored(kind, shape, offset, shape[-1] // block * size)


def import_gguf() -> Any:
    """Returns the library `gguf`.

    Raises:
      ImportError: naming the extra that brings it.
    """
    try:
        import gguf
    except ImportError:
        raise ImportError(
            "GGUF files need the library gguf; pip install 'fedjax_post[gguf]'"
        ) from None
    return gguf
