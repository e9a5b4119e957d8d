"""Reads rows from csv and tsv text; every cell stays as in the file, and an empty cell is None.

A csv file is quoted according to RFC 4180. In a tsv file, quotation marks are ordinary characters.
The first line names the columns. A file with two columns may lack these names, as SST-2 does, if
the second column holds labels: its columns are then `text` and `label`.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from typing import TextIO

from fedjax_post.data.columns import USUAL_NAMES
from fedjax_post.data.json_rows import LONGEST, Numbered

HEADERLESS = ("text", "label")
_ROWS_READ = 1000  # to decide whether the first line is a header

Line = tuple[int, list[str]]  # the line on which a row begins, counted from 1, and its cells


def delimited_rows(text: TextIO, *, tabs: bool) -> Iterator[Numbered]:
    """Yields the rows of csv or tsv text.

    Args:
      text: from its beginning, with line ends unchanged.
      tabs: whether tabs separate the columns, rather than commas.

    Raises:
      ValueError: for text without rows, rows of unequal length and open quotes, with the line.
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
                f"line {line} has {len(cells)} cells, but there are {len(names)} columns "
                f"({', '.join(names)})"
            )
        yield line, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def is_headerless(text: TextIO, *, tabs: bool) -> bool:
    """Returns whether the first line of csv or tsv text is a row with a text and a label.

    Raises:
      ValueError: as `delimited_rows`.
    """
    lines = [cells for _, cells in itertools.islice(_lines(text, tabs=tabs), _ROWS_READ)]
    return bool(lines) and header(lines) is None


def header(rows: list[list[str]]) -> tuple[str, ...] | None:
    """Returns the column names in the first row; None if it is a row of data.

    The name of a column of labels is not itself a label. If the last cell of the first line occurs
    again below, the first line is therefore data, unless it contains a usual name of a column.

    Raises:
      ValueError: if it is unclear what the first line is, and for names that occur twice.
    """
    first, below = rows[0], {row[-1] for row in rows[1:]}
    usual = {name for names in USUAL_NAMES.values() for name in names}
    if usual.isdisjoint(cell.strip().lower() for cell in first):
        if first[-1] in below and len(first) == 2:
            return None
        if first[-1] in below:
            raise ValueError(
                f"its first line names no columns ({first[-1]!r} occurs again below), and the "
                f"roles of {len(first)} columns are unclear; put their names there"
            )
        if any(re.fullmatch(r"[-+]?\d*\.\d+", cell) or len(cell.split()) > 12 for cell in first):
            raise ValueError(f"its first line names no columns ({first}); put their names there")
    names = [cell or f"column {i}" for i, cell in enumerate(first, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"its first line names {', '.join(twice)} twice; use different names")
    return tuple(names)


def _lines(text: TextIO, *, tabs: bool) -> Iterator[Line]:
    """Yields the cells of every line that is not blank."""
    given = _limit_lines(text)
    if tabs:
        for number, line in enumerate(given, start=1):
            if line.strip("\r\n"):
                yield number, line.rstrip("\r\n").split("\t")
        return
    cells = csv.reader(given, strict=True)
    begins = 1
    before = csv.field_size_limit(LONGEST)  # a global limit is the only way to allow long cells
    try:
        for row in cells:
            if row:
                yield begins, row
            begins = cells.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"line {begins}: {error}; put a cell with quotes in quotes and double the inner ones"
        ) from None
    finally:
        csv.field_size_limit(before)


def _limit_lines(text: TextIO) -> Iterator[str]:
    for number in itertools.count(1):
        line = text.readline(LONGEST)
        if len(line) == LONGEST:
            raise ValueError(f"line {number} has more than {LONGEST:,} characters; split it")
        if not line:
            return
        yield line
