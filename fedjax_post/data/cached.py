"""Tables of files on disk, named by a hash of their content.

Text becomes a table in which every scalar is the text in the file; parquet columns keep their
types. The tables are in the cache of `datasets`. An edited file is read again even if its size
and time are the same; an unchanged file is only hashed.
"""

import gzip
import hashlib
import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_post.data.delimited import HEADERLESS, is_headerless
from fedjax_post.data.files import (
    File,
    name_in_errors,
    numbered_rows,
    open_parquet,
    open_text,
    open_unpacked,
)
from fedjax_post.data.stored import cache_folder, open_table, replace_when_done, store, stream

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
_VERSION = 2  # of the content of the tables; increase it when a reader changes
_MUCH = 1 << 30  # bytes above which the decompressed size is logged
_PIECE = 200  # rows of a parquet file that are in memory at a time


def read_text(files: Sequence[File], *, clients: bool = False) -> "Dataset":
    """Returns the rows of text files, one file after the other.

    Args:
      files: of any kind except parquet.
      clients: whether rows without a column `client` get the stem of their file as client.

    Raises:
      ValueError: for a file that cannot be read, with the file, the line and the remedy.
    """
    for file in files:
        if file.kind != "json":
            _warn_headerless(file)
    table = _table_of(files, clients=clients)
    if not table.exists():
        size = 0
        for file in files:
            with name_in_errors(file.path):
                size += _size_of(file)
                _check_room(size)
        rows_of = _client_rows if clients else _bare_rows
        name = files[0].path if len(files) == 1 else files[0].path.parent
        store(table, lambda: itertools.chain.from_iterable(map(rows_of, files)), name=name)
    return open_table(table)


def read_parquet(file: File) -> "Dataset":
    """Returns the rows of a parquet file with their types.

    Raises:
      ValueError: for a file that cannot be read, and for a file that would fill the disk.
    """
    import datasets
    import pyarrow as pa
    from datasets.table import table_cast

    table = _table_of([file], clients=False)
    if table.exists():
        return open_table(table)
    with open_parquet(file) as content:
        names = content.schema_arrow.names
        if len(set(names)) < len(names):
            raise ValueError(f"a column name occurs twice ({', '.join(names)}); rename one")
        features = datasets.Features.from_arrow_schema(content.schema_arrow)

        def pieces() -> Iterator[pa.Table]:
            for batch in content.iter_batches(batch_size=_PIECE):
                yield table_cast(pa.Table.from_batches([batch]), features.arrow_schema)

        # the sizes in the file's metadata do not count repeated values
        sizes = itertools.accumulate(piece.nbytes for piece in pieces())
        size = 0
        for size in sizes:
            _check_room(size)
        _log_size(file, size)
        with replace_when_done(table) as aside, stream(aside, features) as writer:
            for piece in pieces():
                writer.write_table(piece)
    return open_table(table)


def _client_rows(file: File) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file, each with its client."""
    named = None
    for line, row in numbered_rows(file):
        has = "client" in row
        if named is not None and has != named:
            raise ValueError(
                f"dataset={file.path} has a client in some rows, but on line {line} it has "
                f"{'one' if has else 'none'}; give one in each row, or in none"
            )
        named = has
        yield row if has else row | {"client": file.stem}


def _bare_rows(file: File) -> Iterator[dict[str, Any]]:
    return (row for _, row in numbered_rows(file))


def _table_of(files: Sequence[File], *, clients: bool) -> Path:
    """Returns the path of the table of some files, whether it exists or not."""
    key = hashlib.sha256(repr((_VERSION, clients)).encode())
    for file in files:
        with name_in_errors(file.path), file.path.open("rb") as content:
            key.update(repr((file.kind, file.stem if clients else "")).encode())
            key.update(hashlib.file_digest(content, "sha256").digest())
    return cache_folder() / f"rows-{key.hexdigest()[:32]}.arrow"


def _size_of(file: File) -> int:
    """Returns the decompressed size of a text file, in bytes."""
    with open_unpacked(file.path) as content:
        if not isinstance(content, gzip.GzipFile):
            return file.path.stat().st_size
        size = 0
        while piece := content.read(1 << 20):
            size += len(piece)
            _check_room(size)
    _log_size(file, size)
    return size


def _check_room(size: int) -> None:
    """Raises if there are more bytes than free space on the disk."""
    folder = cache_folder()
    room = shutil.disk_usage(folder).free
    if size > room:
        raise ValueError(
            f"it unpacks to more than the {room:,} bytes that are free in {folder}; choose fewer "
            "rows, or set HF_DATASETS_CACHE to another folder"
        )


def _log_size(file: File, size: int) -> None:
    if size > _MUCH:
        _LOG.warning("%s unpacks to %s bytes in %s", file.path, f"{size:,}", cache_folder())


def _warn_headerless(file: File) -> None:
    with open_text(file) as text:
        if is_headerless(text, tabs=file.kind == "tsv"):
            _LOG.warning(
                "%s has no column names: its first line is read as a row of %s",
                *(file.path, " and ".join(HEADERLESS)),
            )
