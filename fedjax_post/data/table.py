"""Tokenised rows, memory-mapped: what clients' batches are gathered from."""

from typing import NamedTuple

import numpy as np


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
    loss_mask[:, 0] = False
    return np.where(signed < 0, ~signed, signed), loss_mask
