"""Tokenised rows, memory-mapped: what clients' batches are gathered from.

Rows are tokenised once, whole, by `datasets.map`, whose cache on disk makes the next start
quick at any `max_length`: rows are cut when they are read. A row that is cut loses its end
of sequence, as it should. A row whose prompt alone fills `max_length` teaches nothing and
is left out.

| row, against max_length L | what happens |
| --- | --- |
| fits | kept |
| longer, some response within L | cut, counted in `fit.num_truncated` |
| longer, no response within L | left out, counted in `fit.num_dropped` |
| no row is left, or none of a client | ValueError that names the length that would do |
| no response in the data | ValueError that names row and column |
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedjax_post.data.splits import Origin
from fedjax_post.data.template import Columns, make_encoder
from fedjax_post.hub.tokenizer import pad_id_of

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
_VERSION = 1  # of what the cache on disk holds; raise it when `make_encoder` changes


class Fit(NamedTuple):
    """How rows fit `max_length`."""

    num_rows: int = 0  # before any was left out
    num_truncated: int = 0  # responses cut
    num_dropped: int = 0  # left out: the prompt alone fills the length
    longest: int = 0  # tokens of the longest row
    example: int | None = None  # number of a row that was cut or left out


class TokenTable(NamedTuple):
    """Rows of tokens over flat, memory-mapped arrays; nothing here holds a copy of the tokens.

    Row i is `values[chunk[i]][start[i] : start[i] + length[i]]`. A response token t,
    one that is to be predicted, is stored as `~t` (that is -t - 1): the loss mask costs
    no storage, and a chat may answer several times. `gather` undoes this.
    """

    values: tuple[np.ndarray, ...]  # one flat int32 view for each Arrow chunk
    chunk: np.ndarray  # [num_rows], int32: which of `values`
    start: np.ndarray  # [num_rows], int64: first token within the chunk
    length: np.ndarray  # [num_rows], int32, tokens, in [2, max_length]
    prompt_length: np.ndarray  # [num_rows], int32: tokens before the last response
    max_length: int  # L: the length of every gathered row
    pad_id: int  # fills rows on the right
    label: np.ndarray | None = None  # [num_rows], the label column, if there is one
    client: np.ndarray | None = None  # [num_rows], the client column, if there is one
    fit: Fit = Fit()


def make_table(
    rows: "Dataset",
    tokenizer,
    *,
    columns: Columns,
    template: str = "auto",
    max_length: int | None = None,
    context_length: int | None = None,
    origin: Origin = Origin(),  # noqa: B008
) -> TokenTable:
    """Returns the tokenised rows of a data set.

    Args:
      rows: a `datasets.Dataset`.
      tokenizer: a Hugging Face tokenizer.
      columns: as `find_columns` returns them. Where `client` is set, each client must
        keep a row.
      template: see `make_segments`.
      max_length: L, in tokens; None or 0 for the longest row, rounded up to a multiple
        of 8 and at most `context_length`.
      context_length: what the model can read, in tokens; None for no limit.
      origin: where the rows come from, for messages.

    Raises:
      ValueError: see the table at the head of this module, and if `max_length` is below 2
        or exceeds `context_length`.
    """
    tokenised = _tokenise(rows, tokenizer, columns, template=template, origin=origin)
    chunks = tokenised.data.column("tokens").chunks
    offsets = [chunk.offsets.to_numpy() for chunk in chunks]
    lengths = np.concatenate([np.diff(offset) for offset in offsets])
    limit = _choose_length(max_length, int(lengths.max()), context_length)
    first = np.maximum(_numbers(tokenised, "first_response"), 1)  # position 0 is not predicted
    client = _values(tokenised, columns.client)
    names = tokenised.data.column(columns.client).to_pylist() if columns.client else ()
    for index, name in enumerate(names):
        if name is None or not str(name).strip():
            raise ValueError(
                f"column {columns.client} names no client for row {origin.row(index)}; "
                "fill it or leave the row out"
            )
    kept = _kept(first, client, limit)
    table = TokenTable(
        values=tuple(chunk.values.to_numpy(zero_copy_only=True) for chunk in chunks),
        chunk=np.repeat(np.arange(len(chunks), dtype=np.int32), [len(c) for c in chunks])[kept],
        start=np.concatenate([offset[:-1] for offset in offsets]).astype(np.int64)[kept],
        length=np.minimum(lengths, limit).astype(np.int32)[kept],
        prompt_length=np.minimum(_numbers(tokenised, "prompt_length"), limit)[kept],
        max_length=limit,
        pad_id=pad_id_of(tokenizer),
        label=_taken(_values(tokenised, columns.label), kept),
        client=_taken(client, kept),
        fit=_fit(lengths, kept, limit, origin),
    )
    if table.fit.num_truncated + table.fit.num_dropped:
        _LOG.warning("%s", fit_message(table))
    return table


def gather(
    table: TokenTable, rows: np.ndarray, *, num_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Copies rows of a table into padded arrays.

    Args:
      table: the tokenised rows.
      rows: `[n]` int, row numbers, in any order, repeats allowed.
      num_rows: height of the result, at least n; n if None. Further rows are padding.

    Returns:
      Tokens `[num_rows, L]` int32, right padded, and loss mask `[num_rows, L]` bool, True
      at response tokens. The first position is never True, since nothing predicts it.
    """
    num_rows = len(rows) if num_rows is None else num_rows
    signed = np.full((num_rows, table.max_length), table.pad_id, np.int32)
    places = zip(
        table.chunk[rows].tolist(),
        table.start[rows].tolist(),
        table.length[rows].tolist(),
        strict=True,
    )
    # A slice copy a row: several times faster than one fancy gather of all tokens.
    for i, (chunk, start, length) in enumerate(places):
        signed[i, :length] = table.values[chunk][start : start + length]
    loss_mask = signed < 0
    tokens = np.where(loss_mask, ~signed, signed)
    loss_mask[:, 0] = False
    return tokens, loss_mask


def fit_message(table: TokenTable) -> str:
    """Returns one sentence on the rows that `max_length` cut or left out."""
    fit = table.fit
    return (
        f"of {fit.num_rows} rows, {fit.num_truncated} are cut and {fit.num_dropped} left out "
        f"(no response within the length) at --max_length={table.max_length}; the longest has "
        f"{fit.longest} tokens, row {fit.example} is an example"
    )


def _tokenise(
    rows: "Dataset", tokenizer, columns: Columns, *, template: str, origin: Origin
) -> "Dataset":
    """Returns columns tokens, prompt_length, first_response, and label and client as they are."""
    import datasets
    from datasets.fingerprint import Hasher

    if not len(rows):
        raise ValueError("--dataset has no rows; choose another one, or another split of it")
    numbers = datasets.Value("int32")
    encoded = {
        "tokens": datasets.List(numbers),
        "prompt_length": numbers,
        "first_response": numbers,
    }
    carried = [name for name in (columns.label, columns.client) if name is not None]
    # The library's own hash of a tokenizer changes with use; this one does not.
    recipe = [_VERSION, rows._fingerprint, _identity(tokenizer), tuple(columns), template]
    fingerprint = Hasher.hash(recipe)
    cache_file = None
    if not rows.cache_files:  # rows in memory have no folder of their own to cache in
        folder = Path(datasets.config.HF_DATASETS_CACHE) / "fedjax_post"
        folder.mkdir(parents=True, exist_ok=True)
        cache_file = str(folder / f"tokens-{fingerprint}.arrow")
    encode = make_encoder(tokenizer, columns, template=template)
    return rows.map(
        lambda batch, indices: encode(batch, [origin.row(index) for index in indices]),
        with_indices=True,
        batched=True,
        remove_columns=[name for name in rows.column_names if name not in carried],
        features=datasets.Features({name: rows.features[name] for name in carried} | encoded),
        new_fingerprint=fingerprint,
        cache_file_name=cache_file,
        desc="tokenise",
    )


def _identity(tokenizer) -> list[str]:
    """Returns texts that differ wherever two tokenizers would."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))
    return [vocabulary, repr(tokenizer.chat_template), repr(tokenizer.special_tokens_map)]


def _choose_length(max_length: int | None, longest: int, context_length: int | None) -> int:
    if not max_length:
        rounded = -(-longest // 8) * 8
        return min(rounded, context_length or rounded)
    if max_length < 2:
        raise ValueError(
            f"--max_length must be at least 2, a prompt and a response, got {max_length}; "
            "use 0 for the longest row"
        )
    if context_length and max_length > context_length:
        raise ValueError(
            f"--max_length={max_length} exceeds what the model reads, {context_length} tokens; "
            f"use at most {context_length}, or 0 for the longest row"
        )
    return max_length


def _kept(first: np.ndarray, client: np.ndarray | None, limit: int) -> np.ndarray:
    """Returns the numbers of rows with a response within the limit, if that leaves enough."""
    fits = first < limit
    if not fits.any():
        raise ValueError(
            f"--max_length={limit} leaves no response in any of the {len(first)} rows: their "
            f"prompts fill it; use at least {first.min() + 1} (all rows: {first.max() + 1})"
        )
    if client is not None and not fits.all():
        names, owner = np.unique(client, return_inverse=True)
        shortest = np.full(len(names), np.iinfo(np.int64).max)
        np.minimum.at(shortest, owner, first)
        empty = np.flatnonzero(shortest >= limit)
        if len(empty):
            raise ValueError(
                f"--max_length={limit} leaves {len(empty)} of {len(names)} clients (such as "
                f"{names[empty[0]]}) without a row that has a response: their prompts fill it; "
                f"use at least {shortest.max() + 1}, or another --partition"
            )
    return np.flatnonzero(fits)


def _fit(lengths: np.ndarray, kept: np.ndarray, limit: int, origin: Origin) -> Fit:
    cut = np.flatnonzero(lengths > limit)
    return Fit(
        num_rows=len(lengths),
        num_truncated=int((lengths[kept] > limit).sum()),
        num_dropped=len(lengths) - len(kept),
        longest=int(lengths.max()),
        example=origin.row(cut[0]).number if len(cut) else None,
    )


def _numbers(tokenised: "Dataset", column: str) -> np.ndarray:
    return tokenised.data.column(column).to_numpy()


def _values(tokenised: "Dataset", column: str | None) -> np.ndarray | None:
    """Returns a column for grouping: integers as they are, all else as text."""
    if column is None:
        return None
    values = tokenised.data.column(column)
    array = values.to_numpy()
    return array if array.dtype.kind in "iu" else array.astype(str)


def _taken(values: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[kept]
