"""What arrived somewhere, counted by content: the second account of disclosure.

It reads the texts that a party received, such as a provider's own log, and the clients' rows,
and knows nothing of rounds, algorithms or what anybody claims to have sent.

A row is found where its text stands whole and contiguous, letter for letter; at a place where
several fit, the longest counts. Its private tokens are those that hold a letter of it, as the
whole text is tokenised. A label that stands behind its row is private text too.

| a text that arrived | what is counted |
| --- | --- |
| holds rows whole, at any place, with anything around them | each of them, each time |
| holds a row behind whose text comes `between`, then its label | the label too |
| holds a row that was cut, masked, shuffled or reworded | nothing: it is not found |
| holds by accident what is the whole text of a short row | that row |

10^4 texts against 10^3 rows take seconds: a look-up for each letter of each distinct text.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_KEY = 12  # letters: long texts are looked up by their first ones


# text -> where each of its tokens begins and ends in it, special tokens left out
OffsetsFn = Callable[[str], Sequence[tuple[int, int]]]


class Private(NamedTuple):
    """A private text of a client's row."""

    text: str
    label: str = ""  # what the row's response is; "" where labels are not looked for
    between: str = ""  # public text between the two where both are shown


class Index(NamedTuple):
    """Private texts, to be found in others."""

    by_key: Mapping[int, Mapping[str, Sequence[str]]]  # key length -> key -> texts, longest first
    answers: Mapping[str, Sequence[tuple[str, str]]]  # text -> (between, label) that it may have


class Span(NamedTuple):
    """A private text in another one."""

    start: int
    end: int
    label: tuple[int, int] | None  # where its label stands, if it does


class Arrived(NamedTuple):
    """What a party received."""

    texts: int
    queries: int  # texts with a private one in them
    private_tokens: int
    unique_tokens: int  # of distinct private texts, labels not counted
    labels: int


def index_of(rows: Iterable[Private]) -> Index:
    """Returns the texts of rows, ready to be found; empty ones are left out."""
    answers: dict[str, set[tuple[str, str]]] = {}
    for text, label, between in rows:
        if text:
            answers.setdefault(text, set()).update([(between, label)] if label else [])
    by_key: dict[int, dict[str, list[str]]] = {}
    for text in sorted(answers, key=len, reverse=True):
        key = text[:_KEY]
        by_key.setdefault(len(key), {}).setdefault(key, []).append(text)
    return Index(by_key, {text: sorted(said) for text, said in answers.items()})


def find(text: str, index: Index) -> list[Span]:
    """Returns the private texts in a text, from left to right, none over another."""
    spans, at = [], 0
    while at < len(text):
        found = _longest(text, at, index)
        if found:
            end = at + len(found)
            spans.append(Span(at, end, _label_at(text, end, index.answers[found])))
        at += max(1, len(found))
    return spans


def arrivals(texts: Iterable[str], index: Index, *, offsets_fn: OffsetsFn) -> Arrived:
    """Returns what was received.

    Args:
      texts: everything that arrived, repeats included.
      index: of all clients' rows.
      offsets_fn: of the tokenizer in whose tokens is counted, see `offsets_of`.
    """
    total = Counter[str]()
    unique: dict[str, int] = {}
    for text, times in Counter(texts).items():
        spans, offsets = find(text, index), offsets_fn(text)
        total["texts"] += times
        total["queries"] += times * bool(spans)
        for start, end, label in spans:
            tokens = touching(offsets, [(start, end)])
            unique.setdefault(text[start:end], tokens)
            total["private_tokens"] += times * tokens
            if label:
                total["private_tokens"] += times * touching(offsets, [label])
                total["labels"] += times
    counts = {name: total[name] for name in Arrived._fields if name != "unique_tokens"}
    return Arrived(**counts, unique_tokens=sum(unique.values()))


def touching(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> int:
    """Returns how many tokens hold a letter of any of some spans of a text."""
    return sum(any(first < end and last > start for start, end in spans) for first, last in offsets)


def offsets_of(tokenizer: Any) -> OffsetsFn:
    """Returns where the tokens of a text are, by a Hugging Face tokenizer.

    Raises:
      ValueError: if it is one of the slow ones, which do not tell.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{tokenizer.name_or_path} does not say where its tokens are; use a tokenizer with a "
            "tokenizer.json"
        )
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    return lambda text: tokenizer(text, **options)["offset_mapping"]


def _label_at(text: str, at: int, answers: Sequence[tuple[str, str]]) -> tuple[int, int] | None:
    """The place of the longest label that stands behind a row."""
    fits = [(at + len(between), at + len(between + label)) for between, label in answers
            if text.startswith(between + label, at)]  # fmt: skip
    return max(fits, key=lambda place: place[1], default=None)


def _longest(text: str, at: int, index: Index) -> str:
    """The longest private text that begins at a place, or ""."""
    best = ""
    for width, keys in index.by_key.items():
        for candidate in keys.get(text[at : at + width], ()):
            if len(candidate) > len(best) and text.startswith(candidate, at):
                best = candidate
    return best
