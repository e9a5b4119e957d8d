"""Reads rows from JSON text value by value; every scalar stays as the text in the file.

| text | rows |
| --- | --- |
| one object on each line, or several objects one after the other | each object |
| an array of objects | each object |
| one object that is a row: a chat, or a prompt with its response | this object |
| another object with exactly one value that is a list or dict of objects | these objects |
| an object with several such values | these objects; the key is the client |

The last form is that of FedLLM-Bench (Ye et al., 2024, arXiv:2406.04845), whose code reads its
files as `{client: [row, ...]}`. Rows of Fed-Aya, Fed-ChatbotIT and the single-turn Fed-WildChat
have `instruction` and `response`, those of the multi-turn Fed-WildChat `conversations` of turns
`{"from": "human" or "gpt", "value"}`, and those of Fed-ChatbotPA have the columns of TRL's
`DPOTrainer`: `prompt`, `chosen` and `rejected`.

Numbers, `true` and `false` become their source text; `null` and Python's `NaN` become None.
Functions and calls (`STRUCTURES`) stay JSON text. Only a text of the last two kinds is held in
memory as a whole.
"""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from fedjax_post.data.columns import STRUCTURES, find_columns

Numbered = tuple[int, dict[str, Any]]  # the line on which a row begins, counted from 1, and the row

LONGEST = 1 << 28  # characters of one value
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")  # keys that are no clients
_DEEPEST = 64  # levels of nested lists and objects
_PIECE = 1 << 16  # characters of the first read
_SPACE: Any = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_rows(text: TextIO) -> Iterator[Numbered]:
    """Yields the rows of JSON text.

    Args:
      text: from its beginning, with line ends unchanged.

    Raises:
      ValueError: for text that is not JSON, and for values that are not rows, with the line.
    """
    buffer = _Buffer(text)
    start = buffer.peek()
    if not start:
        raise ValueError("it is empty")
    values = _array(buffer) if start == "[" else _sequence(buffer)
    pair = list(itertools.islice(values, 2))
    if len(pair) == 1 and start == "{":
        line, value = pair[0]
        yield from ((line, _row(line, row)) for row in _unwrap(value))
        return
    for line, value in itertools.chain(pair, values):
        yield line, _row(line, value)


class _Number(str):
    """A number as it is written in the file."""


def as_text(value: Any, depth: int = 0) -> Any:
    """Returns a JSON value whose scalars are text or None; functions and calls become JSON text.

    Raises:
      ValueError: for lists and objects nested more than 64 deep.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if depth == _DEEPEST:
        raise ValueError(f"lists and objects are nested more than {_DEEPEST} deep")
    if isinstance(value, list):
        return [x if type(x) is str else as_text(x, depth + 1) for x in value]
    return {
        k: x
        if type(x) is str
        else _as_json(x, depth + 1)
        if k in STRUCTURES and isinstance(x, list | dict)
        else as_text(x, depth + 1)
        for k, x in value.items()
    }


def _as_json(value: Any, depth: int) -> str:
    """Returns a value as JSON text, with numbers as they were written."""
    if depth == _DEEPEST:
        raise ValueError(f"lists and objects are nested more than {_DEEPEST} deep")
    if isinstance(value, list):
        return f"[{', '.join(_as_json(x, depth + 1) for x in value)}]"
    if isinstance(value, dict):
        pairs = (f"{_quote(key)}: {_as_json(x, depth + 1)}" for key, x in value.items())
        return f"{{{', '.join(pairs)}}}"
    return str(value) if isinstance(value, _Number) else _quote(value)


def _quote(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Buffer:
    """A text of which only as much is in memory as the current value needs."""

    def __init__(self, text: TextIO):
        self._text, self._held, self._at = text, "", 0
        self.line = 1  # line of the next character

    def peek(self) -> str:
        """Returns the next character that is not white space, or "" at the end."""
        while True:
            self._skip_to(_SPACE.match(self._held, self._at).end())
            if self._at < len(self._held):
                return self._held[self._at]
            self._held, self._at = self._text.read(_PIECE), 0
            if not self._held:
                return ""

    def skip(self) -> None:
        """Skips the character that `peek` returned."""
        self._skip_to(self._at + 1)

    def value(self) -> Any:
        """Returns the value that begins at the character that `peek` returned."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._at)
            except RecursionError:
                raise ValueError(
                    f"line {self.line}: lists and objects are nested too deeply"
                ) from None
            except json.JSONDecodeError as error:
                line = self.line + self._held.count("\n", self._at, error.pos)
                if self._is_cut(error) and self._read_more():
                    continue
                where = "" if line == self.line else f" on line {line}"
                what = error.msg.removesuffix(" at")
                raise ValueError(f"line {self.line}: {what}{where}") from None
            except ValueError as error:
                raise ValueError(f"line {self.line}: {error}") from None
            if _SURROGATE.search(self._held, self._at, end):
                self._check_characters(value)
            self._skip_to(end)
            return value

    def _check_characters(self, value: Any) -> None:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"line {self.line}: half of a surrogate pair is not a character; write both halves "
                "or none"
            ) from None

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Returns whether the error may be due to text that is not read yet."""
        return error.msg.startswith("Unterminated") or error.pos > len(self._held) - 16

    def _read_more(self) -> bool:
        self._held, self._at = self._held[self._at :], 0
        if len(self._held) > LONGEST:
            raise ValueError(
                f"line {self.line}: the value that begins here has more than {LONGEST:,} "
                "characters; write one row as an object on each line"
            )
        more = self._text.read(max(_PIECE, len(self._held)))
        self._held += more
        return bool(more)

    def _skip_to(self, at: int) -> None:
        self.line += self._held.count("\n", self._at, at)
        self._at = at


def _sequence(buffer: _Buffer) -> Iterator[tuple[int, Any]]:
    while buffer.peek():
        yield buffer.line, buffer.value()


def _array(buffer: _Buffer) -> Iterator[tuple[int, Any]]:
    buffer.skip()
    expected = "]"  # or a value
    while (found := buffer.peek()) != "]":
        if expected == ",":
            if found != ",":
                raise ValueError(f"line {buffer.line}: expected ',' or ']' after a row")
            buffer.skip()
            buffer.peek()
        yield buffer.line, buffer.value()
        expected = ","
    buffer.skip()
    if buffer.peek():
        raise ValueError(f"line {buffer.line}: there is more text after the array")


def _row(line: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = "null" if value is None else "a list" if isinstance(value, list) else repr(value)
        raise ValueError(f"line {line}: holds {kind[:40]}, but a row must be an object")
    try:
        return as_text(value)
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from None


def _unwrap(value: dict) -> list:
    """Returns the rows of a text that consists of one object."""
    try:
        find_columns(list(value))
    except ValueError:
        pass
    else:
        return [value]
    held = {
        key: list(inner.values()) if isinstance(inner, dict) else inner
        for key, inner in value.items()
        if isinstance(inner, list | dict)
    }
    tables = {key: inner for key, inner in held.items() if _is_table(inner)}
    if not tables:
        return [value]
    if len(tables) == 1:
        return next(iter(tables.values()))
    if any(key in _SPLITS for key in tables):
        raise ValueError(
            f"it is one object with rows under {', '.join(tables)}; put each into a separate file"
        )
    return [
        row | {"client": client}
        for client, rows in value.items()
        for row in _rows_of(client, held.get(client, rows))
    ]


def _rows_of(client: str, rows: Any) -> list[dict[str, Any]]:
    """Returns the rows of one of several clients; raises for anything else."""
    where = f"it has rows by client, and client {client!r}"
    if not isinstance(rows, list):
        raise ValueError(f"{where} holds {str(rows)[:40]!r}, but must hold a list of rows")
    if not rows:
        raise ValueError(f"{where} has no rows; remove it")
    for number, row in enumerate(rows):
        if not _is_table([row]):
            raise ValueError(f"{where} holds {str(row)[:40]!r} as row {number}, which is no row")
        if row.get("client", client) != client:
            raise ValueError(f"{where} has a column client in row {number}; rename that column")
    return rows


def _is_table(rows: list) -> bool:
    """Returns whether values are rows, rather than the turns of a chat."""
    return bool(rows) and all(
        isinstance(row, dict) and not row.keys() & {"role", "from"} for row in rows
    )


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice; remove one")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_make_object,
    parse_float=_Number,
    parse_int=_Number,
    parse_constant=lambda name: None if name == "NaN" else name,
)
