"""Cells that are text, and text that spells control tokens.

| cell | text |
| --- | --- |
| text | unchanged |
| an int | its digits |
| a list of parts `{"type": "text", "text": ...}` | their texts joined |
| null | None; the reader of the column decides what it means |
| anything else | ValueError that names its type |

A tokenizer reads `</s>` or `<|im_end|>` as a control token wherever it occurs. In a row, somebody
wrote it as text. It is therefore put between two marks before the template is filled, and what is
between the marks is read as plain text. Only tokens that the tokenizer calls special are control
tokens: `<think>` or `<tool_call>`, which answers may contain, stay tokens.
"""

import re
from typing import Any, NamedTuple

# Unicode noncharacters, put around a control token that is spelled in a row
START, END = (
    "\ufdd0",
    "\ufdd1",
)


class Encoding(NamedTuple):
    """A text as tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]  # first and last character of each token in the marked text


def text_of(value: Any, column: str, remedy: str = "") -> str | None:
    """Returns the text of a cell; see the table at the beginning of this module.

    Args:
      value: the content of the cell.
      column: the name of the column, for the message.
      remedy: the remedy in the message if the cell is not text; empty for a default.

    Raises:
      ValueError: for a cell that is not text.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and all(map(_is_part, value)):
        return "".join(part["text"] for part in value)
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise ValueError(
        f"column {column} holds {_kind(value)} ({shown}), which is not text; "
        f"{remedy or 'choose a column of texts, or write this one as text'}"
    )


def _is_part(part: Any) -> bool:
    """Returns whether a value is a text part; keys of other kinds of parts may be null."""
    return (
        isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and all(part[key] is None for key in part.keys() - {"type", "text"})
    )


def _kind(value: Any) -> str:
    if isinstance(value, list):
        kinds = sorted({str(x["type"]) for x in value if isinstance(x, dict) and x.get("type")})
        return f"a list of parts of type {', '.join(kinds)}" if kinds else "a list"
    return {dict: "an object", bool: "a boolean"}.get(type(value), f"a {type(value).__name__}")


def is_marked(text: str) -> bool:
    """Returns whether a text contains a marked control token."""
    return START in text


class ControlTokens:
    """The control tokens of a tokenizer; finds them in rows, marks them, and reads them as text."""

    def __init__(self, tokenizer: Any):
        added = tokenizer.added_tokens_decoder.values()
        special = set(tokenizer.all_special_tokens)
        names = {token.content for token in added if token.special or token.content in special}
        longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        self._spelled = re.compile(longest_first or "(?!)")
        self._marked = re.compile(f"{START}({longest_first or '(?!)'}){END}|[{START}{END}]")
        self._tokenizer = tokenizer
        self._break = self._ids("\n")

    def mark(self, value: Any) -> tuple[Any, bool]:
        """Returns a text, or lists and dicts of texts, with marks, and whether any were added.

        Raises:
          ValueError: for a text that already contains the marks.
        """
        if isinstance(value, str):
            if START in value or END in value:
                raise ValueError(
                    "a text holds U+FDD0 or U+FDD1, which Unicode reserves for internal use; "
                    "remove them"
                )
            if not self._spelled.search(value):
                return value, False
            return self._spelled.sub(rf"{START}\g<0>{END}", value), True
        if isinstance(value, dict):
            texts, marked = self.mark(list(value.values()))
            return dict(zip(value, texts, strict=True)), marked
        if isinstance(value, list):
            pairs = [self.mark(inner) for inner in value]
            return [inner for inner, _ in pairs], any(m for _, m in pairs)
        return value, False

    def encode(self, text: str) -> Encoding:
        """Returns the tokens of a marked text.

        The result equals `apply_chat_template(..., sanitize_control_tokens=True)` where the
        control tokens are the same.

        Raises:
          ValueError: if the tokenizer makes the control token even from plain text.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        at = 0
        for match in (*self._marked.finditer(text), None):
            end = len(text) if match is None else match.start()
            self._add(ids, offsets, text[at:end], at=at, plain=False)
            if match is None:
                break
            if match[1]:
                self._add(ids, offsets, match[1], at=match.start(1), plain=True)
            at = match.end()
        return Encoding(ids, offsets)

    def _add(self, ids: list, offsets: list, piece: str, *, at: int, plain: bool) -> None:
        """Adds a piece's tokens, read after a line break: the beginning of a text is special."""
        if not piece:
            return
        lead = "\n" if at else ""
        # A slow tokenizer gives no offsets; it is used only with forms, which need none.
        options = {"split_special_tokens": plain, "return_offsets_mapping": self._tokenizer.is_fast}
        made = self._tokenizer(lead + piece, add_special_tokens=False, verbose=False, **options)
        first = len(self._break) if lead else 0
        if lead and made["input_ids"][:first] != self._break:
            made = self._tokenizer(piece, add_special_tokens=False, verbose=False, **options)
            first, lead = 0, ""
        new = made["input_ids"][first:]
        if plain and self._tokenizer.convert_tokens_to_ids(piece) in new:
            raise ValueError(
                f"the tokenizer makes the control token {piece} even from plain text; leave the "
                "row out"
            )
        ids += new
        shift = at - len(lead)
        offsets += [(a + shift, b + shift) for a, b in made.get("offset_mapping", ())[first:]]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
