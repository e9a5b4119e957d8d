"""Files of rows: json, jsonl, csv and tsv, plain or gzipped, and parquet.

The kind of a file is determined by its name and by its first bytes. Errors contain the name of
the file, and the line if there is one.
"""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TextIO, cast

from fedjax_post.data.delimited import delimited_rows
from fedjax_post.data.json_rows import Numbered, json_rows

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_TEXTS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "tsv"}
KINDS = _TEXTS | {f"{ending}.gz": kind for ending, kind in _TEXTS.items()} | {".parquet": "parquet"}
_GZIP, _PARQUET, _UTF_16 = b"\x1f\x8b", b"PAR1", (b"\xff\xfe", b"\xfe\xff")
_FOREIGN = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"(\xb5/\xfd": "packed by zstd; unpack it",
    b"\xfd7zXZ": "packed by xz; unpack it",
    b"BZh": "packed by bzip2; unpack it",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run git lfs pull",
}


class File(NamedTuple):
    """A file of rows."""

    path: Path
    stem: str  # its name without the ending
    kind: str  # json, csv, tsv or parquet


def ending_of(name: str) -> str | None:
    """Returns the ending of a name if it is in `KINDS`; None otherwise."""
    return next((ending for ending in KINDS if name.lower().endswith(ending)), None)


def find_file(path: Path) -> File | None:
    """Returns the file at a path, with its kind; None if its ending is not in `KINDS`.

    Raises:
      ValueError: for a path that is not a regular file, and for content that cannot be rows.
    """
    ending = ending_of(path.name)
    if ending is None:
        return None
    kind = KINDS[ending]
    with name_in_errors(path):
        if not path.is_file():  # opening a pipe or a device may block forever
            raise ValueError("it is not a regular file; copy its content into one")
        with open_unpacked(path) as content:
            head = content.read(1 << 12)
        if not head:
            raise ValueError("the file is empty")
        for mark, what in _FOREIGN.items():
            if head.startswith(mark):
                raise ValueError(f"it is {what} first")
        if head.startswith(_PARQUET):
            kind = "parquet"
        elif kind == "parquet":
            raise ValueError("it does not begin like a parquet file; download it again")
        elif head.startswith(_UTF_16) or b"\0" in head:
            raise ValueError(_encoding_message("it", "utf-16"))
    return File(path, path.name[: -len(ending)], kind)


def numbered_rows(file: File) -> Iterator[Numbered]:
    """Yields the rows of a text file, with the lines on which they begin.

    Raises:
      ValueError: for a file that cannot be read, with the file, the line and the remedy.
    """
    with open_text(file) as text:
        if file.kind == "json":
            yield from json_rows(text)
        else:
            yield from delimited_rows(text, tabs=file.kind == "tsv")


def column_names(file: File) -> list[str]:
    """Returns the names of a file's columns, which requires reading the whole file."""
    if file.kind == "parquet":
        with open_parquet(file) as content:
            return content.schema_arrow.names
    return list(dict.fromkeys(name for _, row in numbered_rows(file) for name in row))


def locate(files: Sequence[File], number: int) -> str:
    """Returns the file and line of a row, given its number in the sequence of all files."""
    for file in files:
        if file.kind == "parquet":
            with open_parquet(file) as content:
                size = content.metadata.num_rows
            if number < size:
                name = file.path.name
                return name if len(files) == 1 else f"row {number} of {name}"
            number -= size
            continue
        for line, _ in numbered_rows(file):
            if not number:
                return f"{file.path.name}, line {line}"
            number -= 1
    raise IndexError("there are fewer rows")


@contextlib.contextmanager
def open_parquet(file: File) -> Iterator["ParquetFile"]:
    """Opens a parquet file; errors contain its name."""
    import pyarrow as pa
    from pyarrow import parquet

    with name_in_errors(file.path):
        try:
            with parquet.ParquetFile(file.path) as content:
                yield content
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error


def open_unpacked(path: Path) -> IO[bytes]:
    """Opens a file for reading its content, decompressed if it is gzipped."""
    with path.open("rb") as content:
        packed = content.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


@contextlib.contextmanager
def open_text(file: File) -> Iterator[TextIO]:
    """Opens a text file with line ends unchanged; errors while reading contain its name."""
    with (
        name_in_errors(file.path),
        open_unpacked(file.path) as content,
        io.TextIOWrapper(content, "utf-8-sig", newline="") as text,
    ):
        yield text


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Adds the name of the file to errors while reading."""
    try:
        yield
    except UnicodeDecodeError:
        line = _find_undecodable(path)
        raise ValueError(
            f"dataset={path} cannot be read: {_encoding_message(f'line {line}', 'latin-1')}"
        ) from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"dataset={path} cannot be read: {error}") from error


def _find_undecodable(path: Path) -> int:
    with open_unpacked(path) as content:
        for number, line in enumerate(content, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _encoding_message(what: str, encoding: str) -> str:
    return f"{what} is not UTF-8; convert it, for instance by iconv -f {encoding} -t utf-8"
