"""Tokenises a data set once, as a whole, by `datasets.map`, and caches the result on disk.

The cache depends on the rows, the tokenizer, the columns and the template, but not on a length:
rows are cut when they are read, so that the next start is quick at any `max_length`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedjax_post.data.columns import Columns
from fedjax_post.data.encoder import make_encoder, used_columns
from fedjax_post.data.splits import Origin

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
_VERSION = 2  # of the format of the cache on disk; increase it when `make_encoder` changes


class Notes(NamedTuple):
    """What happened to the rows of a data set, for its report."""

    rows: int = 0  # rows read
    split_chats: int = 0  # chats among them that became several rows
    spelled_rows: int = 0  # rows that spell control tokens, which are read as text
    unlike_prompts: int = 0  # rows whose prompt a server would write with other tokens
    unused_columns: tuple[str, ...] = ()


class Tokenised(NamedTuple):
    """Rows of tokens over flat, memory-mapped arrays, see `TokenTable`."""

    values: tuple[np.ndarray, ...]  # one flat int32 view for each Arrow chunk
    chunk: np.ndarray  # [num_rows], int32: which of `values`
    start: np.ndarray  # [num_rows], int64: first token within the chunk
    length: np.ndarray  # [num_rows], int64, tokens
    prompt_length: np.ndarray  # [num_rows], int32: tokens before the last response
    first: np.ndarray  # [num_rows], int32: the first learned token, at least 1
    row: np.ndarray  # [num_rows], int: number of the row in the source
    label: np.ndarray | None
    client: np.ndarray | None
    notes: Notes


def tokenise(
    rows: "Dataset",
    tokenizer,
    *,
    columns: Columns,
    template: str = "auto",
    against: str | None = None,
    origin: Origin = Origin(),  # noqa: B008 - immutable
) -> Tokenised:
    """Returns the rows as tokens.

    Args:
      rows: a `datasets.Dataset`.
      tokenizer: see `make_encoder`.
      columns: see `make_encoder`.
      template: see `make_encoder`.
      against: see `make_encoder`.
      origin: where the rows come from, for messages.

    Raises:
      ValueError: as `make_encoder`; for a data set without rows; and for a row without a client
        where there is a column of clients, unless the rows are held out.
    """
    if not len(rows):
        raise ValueError("`dataset` has no rows; choose another one, or another split of it")
    made = _encode(rows, tokenizer, columns, template=template, against=against, origin=origin)
    chunks = made.data.column("tokens").chunks
    offsets = [chunk.offsets.to_numpy() for chunk in chunks]
    row = _numbers(made, "row")
    named = columns.client is not None and not origin.held_out
    names = made.data.column(columns.client).to_pylist() if named else ()
    for index, name in enumerate(names):
        if name is None or not str(name).strip():
            raise ValueError(
                f"column {columns.client} names no client for row {origin.row(row[index])}; "
                "fill it or leave the row out"
            )
    used = used_columns(columns, template=template, against=against)
    notes = Notes(
        rows=len(rows),
        split_chats=int((np.bincount(row) > 1).sum()),
        spelled_rows=len(np.unique(row[_numbers(made, "spelled")])),
        unlike_prompts=int(_numbers(made, "unlike").sum()),
        unused_columns=tuple(sorted(set(rows.column_names) - used)),
    )
    _warn(notes, row, made, origin=origin)
    return Tokenised(
        values=tuple(chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks),
        chunk=np.repeat(np.arange(len(chunks), dtype=np.int32), [len(c) for c in chunks]),
        start=np.concatenate([offset[:-1] for offset in offsets]).astype(np.int64),
        length=np.concatenate([np.diff(offset) for offset in offsets]),
        prompt_length=_numbers(made, "prompt_length"),
        first=np.maximum(_numbers(made, "first_response"), 1),  # position 0 is not predicted
        row=row if origin.numbers is None else origin.numbers[row],
        label=_values(made, columns.label),
        client=_values(made, columns.client),
        notes=notes,
    )


def _encode(
    rows: "Dataset",
    tokenizer,
    columns: Columns,
    *,
    template: str,
    against: str | None,
    origin: Origin,
) -> "Dataset":
    """Returns the columns of `make_encoder`, from the cache if it has them."""
    import datasets
    from datasets.fingerprint import Hasher

    number, truth = datasets.Value("int32"), datasets.Value("bool")
    encoded = {"tokens": datasets.List(number), "row": number, "spelled": truth, "unlike": truth}
    encoded |= {"prompt_length": number, "first_response": number}
    carried = [name for name in (columns.label, columns.client) if name is not None]
    # The library's own hash of a tokenizer changes with use; this one does not.
    recipe = [_VERSION, rows._fingerprint, _identity(tokenizer), tuple(columns), template, against]
    fingerprint = Hasher.hash(recipe)
    cache_file = None
    if not rows.cache_files:  # rows in memory have no folder for their cache
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "fedjax_post"
        folder.mkdir(parents=True, exist_ok=True)
        cache_file = str(folder / f"tokens-{fingerprint}.arrow")
    encode = make_encoder(tokenizer, columns, template=template, against=against)

    def encode_at(batch: Mapping[str, list], indices: Sequence[int]) -> dict[str, list]:
        made = encode(batch, [origin.row(index) for index in indices])
        return made | {"row": [indices[i] for i in made.pop("origin")]}

    return rows.map(
        encode_at,
        with_indices=True,
        batched=True,
        remove_columns=rows.column_names,
        features=datasets.Features({name: rows.features[name] for name in carried} | encoded),
        new_fingerprint=fingerprint,
        cache_file_name=cache_file,
        desc="tokenise",
    )


def _warn(notes: Notes, row: np.ndarray, made: "Dataset", *, origin: Origin) -> None:
    """Logs what a user would not expect of the rows."""
    if notes.split_chats:
        _LOG.warning(
            "the chat template writes earlier answers differently from the last one: %d of %d "
            "chats became one row for each answer, %d rows in all",
            *(notes.split_chats, notes.rows, len(row)),
        )
    if notes.spelled_rows:
        _LOG.warning(
            "%d rows spell control tokens in their text, such as row %s; these are read as text",
            *(notes.spelled_rows, origin.row(row[_numbers(made, "spelled")][0])),
        )
    if notes.unlike_prompts:
        _LOG.warning(
            "in %d rows, such as row %s, the prompt has other tokens than a server would give it, "
            "which tokenises the prompt without the answer",
            *(notes.unlike_prompts, origin.row(row[_numbers(made, "unlike")][0])),
        )


def _identity(tokenizer) -> list[str]:
    """Returns texts that differ between any two tokenizers that differ."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    return [vocabulary, repr(tokenizer.chat_template), repr(tokenizer.special_tokens_map)]


def _numbers(made: "Dataset", column: str) -> np.ndarray:
    return made.data.column(column).to_numpy()


def _values(made: "Dataset", column: str | None) -> np.ndarray | None:
    """Returns a column for grouping: integers unchanged, everything else as text, null as ''."""
    if column is None:
        return None
    values = made.data.column(column)
    if values.null_count:
        values = values.cast("string").fill_null("")
    array = values.to_numpy()
    return array if array.dtype.kind in "iu" else array.astype(str)
