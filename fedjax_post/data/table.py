"""Tokenised rows in memory-mapped arrays, from which clients' batches are gathered.

A row that is cut loses its end-of-sequence token, because its response goes on. A row whose
prompt alone fills `max_length` has nothing to learn and is left out; a pair is left out if this
is true of either of its rows.

| row, with max_length L | result |
| --- | --- |
| fits | kept |
| longer, a response begins within L | cut, counted in `fit.num_truncated` |
| longer, no response begins within L | left out, counted in `fit.num_dropped` |
| no row is left, or no row of a client | ValueError with the length that would suffice |
| no response in the data | ValueError with row and column |
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedjax_post.data.columns import Columns
from fedjax_post.data.splits import Origin
from fedjax_post.data.tokenise import Notes, Tokenised, tokenise
from fedjax_post.hub.tokenizer import pad_id_of

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
_BLOCK = 2**14  # rows that are compared at once


class Fit(NamedTuple):
    """How rows fit `max_length`."""

    num_rows: int = 0  # before any row was left out
    num_truncated: int = 0  # rows whose response was cut
    num_dropped: int = 0  # rows left out, because the prompt alone fills the length
    longest: int = 0  # tokens of the longest row
    example: int | None = None  # number in the data set of one row that was cut or left out


class TokenTable(NamedTuple):
    """Rows of tokens over flat, memory-mapped arrays; the tokens are not copied into memory.

    Row i is `values[chunk[i]][start[i] : start[i] + length[i]]`. A response token t, which
    is to be predicted, is stored as `~t` (that is, -t - 1). The loss mask therefore needs
    no storage, and a chat may have several answers. `gather` decodes this.
    """

    values: tuple[np.ndarray, ...]  # one flat int32 view for each Arrow chunk
    chunk: np.ndarray  # [num_rows], int32: which of `values`
    start: np.ndarray  # [num_rows], int64: first token within the chunk
    length: np.ndarray  # [num_rows], int32, tokens, in [2, max_length]
    prompt_length: np.ndarray  # [num_rows], int32: tokens before the last response
    max_length: int  # L: tokens of every gathered row
    pad_id: int  # the token that fills rows on the right
    label: np.ndarray | None = None  # [num_rows], the label column, if there is one
    client: np.ndarray | None = None  # [num_rows], the client column, if there is one
    is_cut: np.ndarray | None = None  # [num_rows], bool: the response goes on; None: no row is cut
    fit: Fit = Fit()
    notes: Notes = Notes()


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
        keep at least one row, unless the rows are held out.
      template: see `is_chat_template`.
      max_length: L, in tokens; None or 0 for the longest row, rounded up to a multiple
        of 8 and at most `context_length`.
      context_length: tokens that the model can read; None for no limit.
      origin: where the rows come from, for messages.

    Raises:
      ValueError: see the table at the beginning of this module, and if `max_length` is below 2
        or exceeds `context_length`.
    """
    tokenised = tokenise(rows, tokenizer, columns=columns, template=template, origin=origin)
    limits = {"max_length": max_length, "context_length": context_length}
    return _fit_rows([tokenised], tokenizer, every_client=not origin.held_out, **limits)[0]


def make_pair_tables(
    rows: "Dataset",
    tokenizer,
    *,
    columns: Columns,
    rejected: str,
    template: str = "auto",
    max_length: int | None = None,
    context_length: int | None = None,
    origin: Origin = Origin(),  # noqa: B008
) -> tuple[TokenTable, TokenTable]:
    """Returns two tables of the same rows: with the preferred and with the rejected responses.

    Args:
      rows: as for `make_table`.
      tokenizer: as for `make_table`.
      columns: one column for each role; `response` is that of the preferred responses.
      rejected: the column of rejected responses.
      template: as for `make_table`.
      max_length: as for `make_table`; the longest row is the longest of both tables.
      context_length: as for `make_table`.
      origin: as for `make_table`.

    Raises:
      ValueError: as `make_table`.
    """
    assert columns.response is not None
    sides = (columns.response, rejected), (rejected, columns.response)
    tokenised = [
        tokenise(
            rows,
            tokenizer,
            columns=columns._replace(response=response),
            template=template,
            against=against,
            origin=origin,
        )
        for response, against in sides
    ]
    limits = {"max_length": max_length, "context_length": context_length}
    one, other = _fit_rows(tokenised, tokenizer, every_client=not origin.held_out, **limits)
    return one, other


def gather(
    table: TokenTable, rows: np.ndarray, *, num_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of a table as padded arrays.

    Args:
      table: the tokenised rows.
      rows: `[n]` int, row numbers, in any order, repeats allowed; -1 for a row of padding.
      num_rows: height of the result, at least n; n if None. Further rows are padding.

    Returns:
      Tokens `[num_rows, L]` int32, right padded, and loss mask `[num_rows, L]` bool, True
      at response tokens. The first position is always False, since nothing predicts it.
    """
    num_rows = len(rows) if num_rows is None else num_rows
    signed = np.full((num_rows, table.max_length), table.pad_id, np.int32)
    places = zip(
        table.chunk[rows].tolist(),
        table.start[rows].tolist(),
        np.where(rows < 0, 0, table.length[rows]).tolist(),
        strict=True,
    )
    # Copying slice by slice is several times faster than one fancy gather of all tokens.
    for i, (chunk, start, length) in enumerate(places):
        signed[i, :length] = table.values[chunk][start : start + length]
    loss_mask = signed < 0
    tokens = np.where(loss_mask, ~signed, signed)
    loss_mask[:, 0] = False
    return tokens, loss_mask


def response_tokens(table: TokenTable, rows: np.ndarray, *, width: int) -> np.ndarray:
    """Returns the first tokens of rows' last responses, `[n, width]` int32, -1 after their end.

    Args:
      table: the tokenised rows.
      rows: `[n]` int, row numbers, in any order.
      width: tokens of each response.
    """
    return ~_signed(table, rows, first=table.prompt_length[rows], width=width, fill=0)


def signed_rows(table: TokenTable, rows: np.ndarray) -> np.ndarray:
    """Returns whole rows, response tokens as `~t`, 0 after their end, `[n, max_length]` int32."""
    first = np.zeros(len(rows), np.int64)
    return _signed(table, rows, first=first, width=table.max_length, fill=0)


def common_start(tables: Sequence[TokenTable]) -> np.ndarray:
    """Returns the tokens with which the prompts of all rows begin, `[F]` int32.

    A prompt is what precedes the first response. In every prompt at least one more token follows.
    """
    row = np.array([0])
    start = _signed(tables[0], row, first=np.array([0]), width=tables[0].max_length, fill=-1)[0]
    start = start[: int(np.argmax(np.append(start, -1) < 0))]
    for table in tables:
        for block in range(0, len(table.length), _BLOCK):
            rows = np.arange(len(table.length))[block : block + _BLOCK]
            first = np.zeros(len(rows), np.int64)
            found = _signed(table, rows, first=first, width=len(start) + 1, fill=-1)
            equal = np.cumprod(found[:, :-1] == start[None], axis=1).sum(axis=1)
            is_all = found[np.arange(len(rows)), equal] < 0  # no token of the prompt follows
            start = start[: max(0, int((equal - is_all).min()))]
    return start


def _signed(table: TokenTable, rows: np.ndarray, *, first, width: int, fill: int) -> np.ndarray:
    """Returns rows from the place `first` `[n]` on, response tokens as `~t`, `[n, width]` int32."""
    found = np.full((len(rows), width), fill, np.int32)
    chunk = table.chunk[rows]
    place = (table.start[rows] + first)[:, None] + np.arange(width)
    is_inside = place < (table.start[rows] + table.length[rows])[:, None]
    for number in np.unique(chunk):
        here = is_inside & (chunk == number)[:, None]
        found[here] = table.values[number][place[here]]
    return found


def take_rows(table: TokenTable, rows: np.ndarray) -> TokenTable:
    """Returns a table of some rows, `[n]` int, in any order, repeats allowed; nothing is copied."""
    own = {name: x for name, x in table._asdict().items() if isinstance(x, np.ndarray)}
    return table._replace(**{name: x[rows] for name, x in own.items()})


def fit_message(table: TokenTable) -> str:
    """Returns one sentence on the rows that `max_length` has cut or left out."""
    fit = table.fit
    return (
        f"of {fit.num_rows} rows, {fit.num_truncated} are cut and {fit.num_dropped} left out "
        f"(no response within the length) at max_length={table.max_length}; the longest has "
        f"{fit.longest} tokens, row {fit.example} is an example"
    )


def _fit_rows(
    sides: Sequence[Tokenised],
    tokenizer,
    *,
    max_length: int | None,
    context_length: int | None,
    every_client: bool,
) -> list[TokenTable]:
    """Returns tables of one length and with the same rows: those with a response in each table."""
    longest = max(int(side.length.max()) for side in sides)
    limit = _choose_length(max_length, longest, context_length)
    first = np.max([side.first for side in sides], axis=0)
    kept = _find_fitting(first, sides[0].client if every_client else None, limit)
    tables = [
        TokenTable(
            values=side.values,
            chunk=side.chunk[kept],
            start=side.start[kept],
            length=np.minimum(side.length, limit).astype(np.int32)[kept],
            prompt_length=np.minimum(side.prompt_length, limit)[kept],
            max_length=limit,
            pad_id=pad_id_of(tokenizer),
            label=_select(side.label, kept),
            client=_select(side.client, kept),
            is_cut=(side.length > limit)[kept],
            fit=_count_fit(side, kept, limit),
            notes=side.notes,
        )
        for side in sides
    ]
    for table in tables:  # the same rows are left out of each
        if table.fit.num_truncated or (table.fit.num_dropped and table is tables[0]):
            _LOG.warning("%s", fit_message(table))
    return tables


def _choose_length(max_length: int | None, longest: int, context_length: int | None) -> int:
    if not max_length:
        rounded = -(-longest // 8) * 8
        return min(rounded, context_length or rounded)
    if max_length < 2:
        raise ValueError(
            f"max_length must be at least 2, a prompt and a response, got {max_length}; "
            "use 0 for the longest row"
        )
    if context_length and max_length > context_length:
        raise ValueError(
            f"max_length={max_length} exceeds the model's context of {context_length} tokens; "
            f"use at most {context_length}, or 0 for the longest row"
        )
    return max_length


def _find_fitting(first: np.ndarray, client: np.ndarray | None, limit: int) -> np.ndarray:
    """Returns the numbers of the rows with a response within the limit; raises if too few."""
    fits = first < limit
    if not fits.any():
        raise ValueError(
            f"max_length={limit} leaves no response in any of the {len(first)} rows, because "
            f"their prompts fill it; use at least {first.min() + 1} (all rows: {first.max() + 1})"
        )
    if client is not None and not fits.all():
        names, owner = np.unique(client, return_inverse=True)
        shortest = np.full(len(names), np.iinfo(np.int64).max)
        np.minimum.at(shortest, owner, first)
        empty = np.flatnonzero(shortest >= limit)
        if len(empty):
            raise ValueError(
                f"max_length={limit} leaves {len(empty)} of {len(names)} clients (such as "
                f"{names[empty[0]]}) without a row that has a response, because their prompts "
                f"fill it; use at least {shortest.max() + 1}, or another `partition`"
            )
    return np.flatnonzero(fits)


def _count_fit(side: Tokenised, kept: np.ndarray, limit: int) -> Fit:
    lengths, left_out = side.length, np.ones(len(side.length), bool)
    left_out[kept] = False
    touched = np.flatnonzero(left_out | (lengths > limit))
    return Fit(
        num_rows=len(lengths),
        num_truncated=int((lengths[kept] > limit).sum()),
        num_dropped=len(lengths) - len(kept),
        longest=int(lengths.max()),
        example=int(side.row[touched[0]]) if len(touched) else None,
    )


def _select(values: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[kept]
