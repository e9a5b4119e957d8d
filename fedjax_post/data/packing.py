"""Packing: several examples in one row, each a segment that attends only to itself."""

from typing import NamedTuple

import numpy as np

from fedjax_post.data.table import TokenTable, gather


class Places(NamedTuple):
    """The places of the packed examples, which may be only the first ones of a stream."""

    row: np.ndarray  # [placed], int
    start: np.ndarray  # [placed], int: the place of the example's first token in its row
    num_rows: int  # number of rows used


def first_fit(lengths: np.ndarray, capacity: int, *, num_rows: int | None = None) -> Places:
    """Puts each example into the first row with room for it, in the order of the stream.

    With a limit on the rows, packing ends at the first example that does not fit: skipping it
    in favour of a shorter one would make short examples more frequent.

    Args:
      lengths: `[n]` int, tokens of each example, at most `capacity`.
      capacity: tokens of a row.
      num_rows: number of available rows; None: as many as needed.

    Returns:
      The places of the examples, in the order of the stream.
    """
    free: list[int] = []
    rows, starts = [], []
    for length in lengths.tolist():
        row = next((i for i, left in enumerate(free) if left >= length), len(free))
        if row == num_rows:
            break
        if row == len(free):
            free.append(capacity)
        rows.append(row)
        starts.append(capacity - free[row])
        free[row] -= length
    return Places(np.array(rows, np.int64), np.array(starts, np.int64), len(free))


def max_rows(num_examples: np.ndarray, num_tokens: np.ndarray, capacity: int) -> np.ndarray:
    """Returns an upper bound on the rows of `first_fit`: no two of its rows would fit into one.

    Args:
      num_examples: `[...]` int, numbers of examples.
      num_tokens: `[...]` int, numbers of tokens of these examples.
      capacity: tokens of a row.
    """
    return np.minimum(num_examples, 2 * num_tokens // capacity + 1)


def gather_packed(
    table: TokenTable, examples: np.ndarray, places: Places, *, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Returns packed rows, with examples of a table copied to their places.

    Args:
      table: the tokenised examples.
      examples: `[placed]` int, row numbers of the table.
      places: as `first_fit` returns them, for the same examples.
      shape: number of rows, and tokens of a row; unused places are padding.

    Returns:
      Arrays of that shape: tokens int32, loss_mask bool, and segments int32, which number the
      examples of a row from 1; 0 is padding.
    """
    tokens = np.full(shape, table.pad_id, np.int32)
    loss_mask = np.zeros(shape, bool)
    segments = np.zeros(shape, np.int32)
    single_tokens, single_mask = gather(table, examples)
    count = np.zeros(shape[0], np.int32)
    lengths = table.length[examples].tolist()
    for i, (row, start, length) in enumerate(
        zip(places.row.tolist(), places.start.tolist(), lengths, strict=True)
    ):
        count[row] += 1
        part = slice(start, start + length)
        tokens[row, part] = single_tokens[i, :length]
        loss_mask[row, part] = single_mask[i, :length]
        segments[row, part] = count[row]
    return {"tokens": tokens, "loss_mask": loss_mask, "segments": segments}
