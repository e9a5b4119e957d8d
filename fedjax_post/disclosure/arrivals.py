"""Counts received texts by their content: the second account of disclosure.

It compares the texts that a party received, such as those in a provider's own log, with the
clients' rows. It does not use rounds, algorithms or records of what was sent.

A row is found where its complete text occurs, character for character. Where several rows match at
one position, the longest counts. Its private tokens are those that contain at least one of its
characters when the received text is tokenised. A label after its row is private text too.

| a received text | what is counted |
| --- | --- |
| contains complete rows, anywhere, with any text around them | each of them, each time |
| contains a row followed by `between` and then its label | the label too |
| contains a row that was cut, masked, shuffled or reworded | nothing: it is not found |
| contains by chance the complete text of a short row | that row |

10^4 texts with 10^3 rows take seconds: one look-up for each character of each distinct text.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_KEY = 12  # characters: longer texts are looked up by their first ones


# text -> (start, end) of each of its tokens, without special tokens
OffsetsFn = Callable[[str], Sequence[tuple[int, int]]]


class Private(NamedTuple):
    """A private text of a client's row."""

    text: str
    label: str = ""  # response of the row; "" if labels are not searched for
    between: str = ""  # public text between the text and its label where both are shown


class Index(NamedTuple):
    """An index of private texts, to find them in other texts."""

    by_key: Mapping[int, Mapping[str, Sequence[str]]]  # key length -> key -> texts, longest first
    answers: Mapping[str, Sequence[tuple[str, str]]]  # text -> its possible (between, label)


class Span(NamedTuple):
    """The position of a private text in another text."""

    start: int
    end: int
    label: tuple[int, int] | None  # position of its label, if that follows


class Arrived(NamedTuple):
    """Counts of what a party received."""

    texts: int
    queries: int  # texts that contain a private text
    private_tokens: int
    unique_tokens: int  # tokens of distinct private texts, without labels
    labels: int


def index_of(rows: Iterable[Private]) -> Index:
    """Returns an index of the texts of rows, without empty ones.

    >>> find("ask: the cat? yes", index_of([Private("the cat", "yes", "? ")]))
    [Span(start=5, end=12, label=(14, 17))]
    """
    answers: dict[str, set[tuple[str, str]]] = {}
    for text, label, between in rows:
        if text:
            answers.setdefault(text, set()).update([(between, label)] if label else [])
    by_key: dict[int, dict[str, list[str]]] = {}
    for text in sorted(answers, key=len, reverse=True):
        key = text[:_KEY]
        by_key.setdefault(len(key), {}).setdefault(key, []).append(text)
    return Index(by_key, {text: sorted(found) for text, found in answers.items()})


def find(text: str, index: Index) -> list[Span]:
    """Returns the positions of private texts in a text, from left to right, without overlaps."""
    spans, at = [], 0
    while at < len(text):
        found = _longest(text, at, index)
        if found:
            end = at + len(found)
            spans.append(Span(at, end, _label_at(text, end, index.answers[found])))
        at += max(1, len(found))
    return spans


def arrivals(texts: Iterable[str], index: Index, *, offsets_fn: OffsetsFn) -> Arrived:
    """Returns counts of what was received.

    Args:
      texts: all received texts, including repetitions.
      index: of all clients' rows.
      offsets_fn: of the tokenizer whose tokens are counted, see `offsets_of`.
    """
    total = Counter[str]()
    unique: dict[str, int] = {}
    for text, times in Counter(texts).items():
        spans, offsets = find(text, index), offsets_fn(text)
        total["texts"] += times
        total["queries"] += times * bool(spans)
        for start, end, label in spans:
            tokens = count_touching(offsets, [(start, end)])
            unique.setdefault(text[start:end], tokens)
            total["private_tokens"] += times * tokens
            if label:
                total["private_tokens"] += times * count_touching(offsets, [label])
                total["labels"] += times
    counts = {name: total[name] for name in Arrived._fields if name != "unique_tokens"}
    return Arrived(**counts, unique_tokens=sum(unique.values()))


def count_touching(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> int:
    """Returns the number of tokens that contain a character of any of the spans."""
    return sum(any(first < end and last > start for start, end in spans) for first, last in offsets)


def offsets_of(tokenizer: Any) -> OffsetsFn:
    """Returns the function that maps a text to the positions of its tokens.

    Raises:
      ValueError: for a slow tokenizer, which does not return positions.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{tokenizer.name_or_path} does not return positions of tokens; use a tokenizer with "
            "a tokenizer.json"
        )
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    return lambda text: tokenizer(text, **options)["offset_mapping"]


def _label_at(text: str, at: int, answers: Sequence[tuple[str, str]]) -> tuple[int, int] | None:
    """Returns the position of the longest label that follows a row, or None."""
    fits = [(at + len(between), at + len(between + label)) for between, label in answers
            if text.startswith(between + label, at)]  # fmt: skip
    return max(fits, key=lambda place: place[1], default=None)


def _longest(text: str, at: int, index: Index) -> str:
    """Returns the longest private text that begins at a position, or ""."""
    best = ""
    for width, keys in index.by_key.items():
        for candidate in keys.get(text[at : at + width], ()):
            if len(candidate) > len(best) and text.startswith(candidate, at):
                best = candidate
    return best
