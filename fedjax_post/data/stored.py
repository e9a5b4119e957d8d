"""Tables of text on disk: rows are written in blocks and read back memory-mapped.

A column whose cells are all text is a column of strings. A column that also holds lists or objects
is stored as `datasets.Json`, so that rows need not have the same structure.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

Row = Mapping[str, Any]  # scalars are text or None
Columns = dict[str, bool]  # whether a column holds lists or objects

_BLOCK_ROWS, _BLOCK_CHARACTERS = 500, 1 << 24  # of one block, which is held in memory
_MOST_COLUMNS = 1000


def cache_folder() -> Path:
    """Returns the folder for tables, and creates it if it is missing."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "fedjax_post"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_table(path: Path) -> "Dataset":
    """Returns the rows of a table, memory-mapped; the file name serves as their fingerprint."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    try:
        return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=path.stem)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error


def store(path: Path, make_rows: Callable[[], Iterable[Row]], *, name: object) -> None:
    """Writes rows of text to a table, either completely or not at all.

    Args:
      path: path of the table.
      make_rows: returns the rows; it is called again if later rows have columns that the first
        rows do not have.
      name: where the rows come from, for messages.

    Raises:
      ValueError: for rows with more than 1000 columns.
      OSError: if the table cannot be written.
    """
    columns = extend_columns({}, next(_blocks(make_rows()), []))
    while True:
        found = columns
        with replace_when_done(path) as aside:
            with stream(aside, features_of(columns)) as writer:
                for block in _blocks(make_rows()):
                    found = extend_columns(found, block)
                    if len(found) > _MOST_COLUMNS:
                        raise ValueError(
                            f"dataset={name} has more than {_MOST_COLUMNS} columns, such as "
                            f"{', '.join(list(found)[-3:])}; put content that differs from row "
                            "to row into one column"
                        )
                    if found == columns:
                        writer.write_batch(make_batch(block, columns))
            if found != columns:
                aside.unlink()
        if found == columns:
            return
        columns = found


@contextlib.contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Gives a temporary path, and moves its file into place unless it failed or was removed."""
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        yield aside
        if aside.exists():
            os.replace(aside, path)
    except OSError as error:
        raise OSError(
            f"{path.parent} cannot hold the rows ({error}); free some space there, or set "
            "HF_DATASETS_CACHE to another folder"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def stream(path: Path, features: "Features") -> Iterator["pa.RecordBatchWriter"]:
    """Opens a table for writing."""
    import pyarrow as pa

    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, features.arrow_schema) as writer,
    ):
        yield writer


def features_of(columns: Columns) -> "Features":
    """Returns the types of text columns."""
    from datasets import Features, Json, Value

    return Features({name: Json() if deep else Value("string") for name, deep in columns.items()})


def extend_columns(columns: Columns, block: Sequence[Row]) -> Columns:
    """Returns the columns extended by those of some rows."""
    columns = dict(columns)
    for row in block:
        for name, cell in row.items():
            if isinstance(cell, list | dict):
                columns[name] = True
            else:
                columns.setdefault(name, False)
    return columns


def make_batch(block: Sequence[Row], columns: Columns) -> "pa.RecordBatch":
    """Returns rows as a record batch of a table."""
    import pyarrow as pa

    arrays = []
    for name, deep in columns.items():
        cells = [row.get(name) for row in block]
        if deep:
            cells = [None if cell is None else _dump(cell) for cell in cells]
        array = pa.array(cells, pa.string())
        arrays.append(pa.ExtensionArray.from_storage(pa.json_(), array) if deep else array)
    return pa.record_batch(arrays, schema=features_of(columns).arrow_schema)


def _blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    block: list[Row] = []
    held = 0
    for row in rows:
        block.append(row)
        held += sum(len(cell) for cell in row.values() if isinstance(cell, str))
        if len(block) == _BLOCK_ROWS or held > _BLOCK_CHARACTERS:
            yield block
            block, held = [], 0
    if block:
        yield block


_dump = json.JSONEncoder(ensure_ascii=False).encode
