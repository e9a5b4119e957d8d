"""Rows of csv and tsv text, every cell as it stands there; an empty cell is None.

A csv file quotes as RFC 4180 has it. Where tabs part the columns, a quotation mark is a mark. The
first line names the columns. One of two columns may lack names, as SST-2 does, if its second holds
labels: it then has the columns `text` and `label`.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from typing import TextIO

from fedjax_post.data.columns import USUAL_NAMES
from fedjax_post.data.json_rows import LONGEST, Numbered

HEADERLESS = ("text", "label")
_ROWS_READ = 1000  # to tell whether the first one is a header

Line = tuple[int, list[str]]  # the line on which a row begins, from 1, and its cells


def delimited_rows(text: TextIO, *, tabs: bool) -> Iterator[Numbered]:
    """Yields the rows of csv or tsv text.

    Args:
      text: from its beginning, line ends as they are.
      tabs: whether tabs part the columns, not commas.

    Raises:
      ValueError: for text without rows, rows of unequal length and open quotes; names the line.
    """
    lines = _lines(text, tabs=tabs)
    first = list(itertools.islice(lines, _ROWS_READ))
    if not first:
        raise ValueError("it is empty")
    names = header([cells for _, cells in first])
    body = itertools.chain(first, lines)
    if names is None:
        names = HEADERLESS
    else:
        next(body)
    for line, cells in body:
        if len(cells) != len(names):
            raise ValueError(
                f"line {line} has {len(cells)} cells, and the columns are {len(names)} "
                f"({', '.join(names)})"
            )
        yield line, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def is_headerless(text: TextIO, *, tabs: bool) -> bool:
    """Whether the first line of csv or tsv text is a row of a text and a label.

    Raises:
      ValueError: as `delimited_rows`.
    """
    lines = [cells for _, cells in itertools.islice(_lines(text, tabs=tabs), _ROWS_READ)]
    return bool(lines) and header(lines) is None


def header(rows: list[list[str]]) -> tuple[str, ...] | None:
    """Returns the names of columns in the first of some rows; None if it is a row itself.

    The name of a column of labels is no label: where the last cell of the first line is found
    below itself, the first line is a row, unless it has a usual name of a column.

    Raises:
      ValueError: if the first line cannot be told, and for names that stand twice.
    """
    first, below = rows[0], {row[-1] for row in rows[1:]}
    usual = {name for names in USUAL_NAMES.values() for name in names}
    if usual.isdisjoint(cell.strip().lower() for cell in first):
        if first[-1] in below and len(first) == 2:
            return None
        if first[-1] in below:
            raise ValueError(
                f"its first line names no columns ({first[-1]!r} occurs again below), and of "
                f"{len(first)} columns it cannot be told which is which; put their names there"
            )
        if any(re.fullmatch(r"[-+]?\d*\.\d+", cell) or len(cell.split()) > 12 for cell in first):
            raise ValueError(f"its first line names no columns ({first}); put their names there")
    names = [cell or f"column {i}" for i, cell in enumerate(first, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"its first line names {', '.join(twice)} twice; give each its own name")
    return tuple(names)


def _lines(text: TextIO, *, tabs: bool) -> Iterator[Line]:
    """Yields the cells of every line that is not blank."""
    given = _limited(text)
    if tabs:
        for number, line in enumerate(given, start=1):
            if line.strip("\r\n"):
                yield number, line.rstrip("\r\n").split("\t")
        return
    cells = csv.reader(given, strict=True)
    begins = 1
    before = csv.field_size_limit(LONGEST)  # the module has no other way to allow long cells
    try:
        for row in cells:
            if row:
                yield begins, row
            begins = cells.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"line {begins}: {error}; a cell with quotes stands in quotes, its own doubled"
        ) from None
    finally:
        csv.field_size_limit(before)


def _limited(text: TextIO) -> Iterator[str]:
    for number in itertools.count(1):
        line = text.readline(LONGEST)
        if len(line) == LONGEST:
            raise ValueError(f"line {number} has more than {LONGEST:,} characters; break it up")
        if not line:
            return
        yield line
