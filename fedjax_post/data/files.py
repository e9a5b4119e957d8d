"""Files of rows: json, jsonl, csv and tsv, plain or gzipped, and parquet.

What a file holds is told by its name and by its first bytes. Text is read row by row into a table
on disk, in which every scalar is the text of the file; parquet keeps the types of its columns. The
table stays in the cache of `datasets` under a hash of the content, so that an edited file is read
anew, whatever its time, and an unchanged one is only hashed.
"""

import contextlib
import gzip
import hashlib
import io
import itertools
import logging
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from fedjax_post.data.delimited import HEADERLESS, delimited_rows, is_headerless
from fedjax_post.data.json_rows import Numbered, json_rows
from fedjax_post.data.stored import cache_folder, open_table, store, stream, written

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
_VERSION = 1  # of what the cache on disk holds; raise it when a reader changes
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
_MUCH = 1 << 30  # bytes that are not unpacked without a word
_PIECE = 200  # rows of a parquet file that are in memory at a time


class File(NamedTuple):
    """A file of rows."""

    path: Path
    stem: str  # its name without endings
    kind: str  # one of json, csv, tsv and parquet


def find_file(path: Path) -> File | None:
    """Returns what a path holds; None where its ending is none of ours.

    Raises:
      ValueError: for what is no regular file, and for content of another kind than rows.
    """
    ending = next((e for e in sorted(KINDS, key=len, reverse=True) if path.name.endswith(e)), None)
    if ending is None:
        return None
    kind = KINDS[ending]
    with _naming(path):
        if not path.is_file():  # to open a pipe or a device may take for ever
            raise ValueError("it is no regular file; copy what it gives into one")
        with _plain(path) as content:
            head = content.read(1 << 12)
        if not head:
            raise ValueError("the file is empty")
        for mark, what in _FOREIGN.items():
            if head.startswith(mark):
                raise ValueError(f"it is {what} first")
        if head.startswith(_PARQUET):
            kind = "parquet"
        elif kind == "parquet":
            raise ValueError("it does not begin as a parquet file does; download it again")
        elif head.startswith(_UTF_16) or b"\0" in head:
            raise ValueError(_recoded("it", "utf-16"))
    return File(path, path.name[: -len(ending)], kind)


def read_text(files: Sequence[File], *, clients: bool = False) -> "Dataset":
    """Returns the rows of files of text, one file after the other.

    Args:
      files: of any kind but parquet.
      clients: whether rows without a column `client` get their file's stem there.

    Raises:
      ValueError: for a file that cannot be read, naming it, the line and the remedy.
    """
    for file in files:
        if file.kind != "json":
            _warn_headerless(file)
    table = _table_of(files, repr((_VERSION, clients)))
    if not table.exists():
        size = 0
        for file in files:
            with _naming(file.path):
                size += _size_of(file)
                _check_room(size)
        rows_of = _of_client if clients else _bare
        store(table, lambda: itertools.chain.from_iterable(map(rows_of, files)))
    return open_table(table)


def read_parquet(file: File) -> "Dataset":
    """Returns the rows of a parquet file, typed as they are there.

    Raises:
      ValueError: for a file that cannot be read, and one that would fill the disk.
    """
    import datasets
    import pyarrow as pa
    from datasets.table import table_cast
    from pyarrow import parquet

    table = _table_of([file], repr(_VERSION))
    if table.exists():
        return open_table(table)
    with _naming(file.path):
        try:
            content = parquet.ParquetFile(file.path)
            names = content.schema_arrow.names
            if len(set(names)) < len(names):
                raise ValueError(f"a column stands twice ({', '.join(names)})")
            features = datasets.Features.from_arrow_schema(content.schema_arrow)

            def pieces() -> Iterator[pa.Table]:
                for batch in content.iter_batches(batch_size=_PIECE):
                    yield table_cast(pa.Table.from_batches([batch]), features.arrow_schema)

            # its own account of sizes does not count what repeats
            sizes = itertools.accumulate(piece.nbytes for piece in pieces())
            size = 0
            for size in sizes:
                _check_room(size)
            _tell_size(file, size)
            with written(table) as aside, stream(aside, features) as writer:
                for piece in pieces():
                    writer.write_table(piece)
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
    return open_table(table)


def numbered_rows(file: File) -> Iterator[Numbered]:
    """Yields the rows of a file of text, and the lines on which they begin.

    Raises:
      ValueError: as `read_text`.
    """
    with _naming(file.path), _text(file.path) as text:
        if file.kind == "json":
            yield from json_rows(text)
        else:
            yield from delimited_rows(text, tabs=file.kind == "tsv")


def column_names(file: File) -> list[str]:
    """Returns the columns of a file, at the cost of reading it."""
    if file.kind == "parquet":
        return read_parquet(file).column_names
    return list(dict.fromkeys(name for _, row in numbered_rows(file) for name in row))


def locate(files: Sequence[File], number: int) -> str:
    """Returns the file and line of a row, by its number in all of the files."""
    for file in files:
        if file.kind == "parquet":
            size = len(read_parquet(file))
            if number < size:
                return f"row {number} of {file.path.name}"
            number -= size
            continue
        for line, _ in numbered_rows(file):
            if not number:
                return f"{file.path.name}, line {line}"
            number -= 1
    raise IndexError("there are fewer rows")


def _of_client(file: File) -> Iterator[dict[str, Any]]:
    """The rows of a file, each with its client."""
    named = None
    for line, row in numbered_rows(file):
        has = "client" in row
        if named is not None and has != named:
            raise ValueError(
                f"dataset={file.path} names a client in some rows, and on line {line} "
                f"{'one' if has else 'none'}; name one in each row, or in none"
            )
        named = has
        yield row if has else row | {"client": file.stem}


def _table_of(files: Sequence[File], recipe: str) -> Path:
    """Returns where the table of some files is, or is to be."""
    key = hashlib.sha256(recipe.encode())
    for file in files:
        with _naming(file.path), file.path.open("rb") as content:
            key.update(repr((file.kind, file.stem)).encode())
            key.update(hashlib.file_digest(content, "sha256").digest())
    return cache_folder() / f"rows-{key.hexdigest()[:32]}.arrow"


def _check_room(size: int) -> None:
    """Refuses to unpack more bytes than the disk has room for."""
    folder = cache_folder()
    room = shutil.disk_usage(folder).free
    if size > room:
        raise ValueError(
            f"it unpacks to more than the {room:,} bytes that are free in {folder}; choose fewer "
            "rows, or set HF_DATASETS_CACHE to another folder"
        )


def _tell_size(file: File, size: int) -> None:
    if size > _MUCH:
        _LOG.warning("%s unpacks to %s bytes in %s", file.path, f"{size:,}", cache_folder())


def _bare(file: File) -> Iterator[dict[str, Any]]:
    return (row for _, row in numbered_rows(file))


def _size_of(file: File) -> int:
    """Returns the bytes of a file of text once it is unpacked."""
    with _plain(file.path) as content:
        if not isinstance(content, gzip.GzipFile):
            return file.path.stat().st_size
        size = 0
        while piece := content.read(1 << 20):
            size += len(piece)
            _check_room(size)
    _tell_size(file, size)
    return size


def _warn_headerless(file: File) -> None:
    with _naming(file.path), _text(file.path) as text:
        if is_headerless(text, tabs=file.kind == "tsv"):
            _LOG.warning(
                "%s names no columns: its first line is read as a row of %s",
                *(file.path, " and ".join(HEADERLESS)),
            )


def _plain(path: Path) -> IO[bytes]:
    """Opens a file to read its content, unpacked where it is gzipped."""
    with path.open("rb") as content:
        packed = content.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    with _plain(path) as content, io.TextIOWrapper(content, "utf-8-sig", newline="") as text:
        yield text


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives errors of reading the name of the file."""
    try:
        yield
    except UnicodeDecodeError:
        line = _undecodable(path)
        raise ValueError(
            f"dataset={path} cannot be read: {_recoded(f'line {line}', 'latin-1')}"
        ) from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"dataset={path} cannot be read: {error}") from error


def _undecodable(path: Path) -> int:
    with _plain(path) as content:
        for number, line in enumerate(content, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _recoded(what: str, encoding: str) -> str:
    return f"{what} is no UTF-8; save it so, for instance by iconv -f {encoding} -t utf-8"
