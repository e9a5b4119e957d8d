"""The possible answers of labelled rows, found in the rows themselves.

Rows are labelled if few different responses, each of which occurs several times, make up nearly
all of them. Rows that are cut do not count.

| responses | labels |
| --- | --- |
| `labels` are given | these |
| 2 to `MOST` short ones, each in at least `TIMES` rows, in `SHARE` of all rows | these |
| anything else | none |
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_post.data.table import TokenTable, gather, response_tokens

MOST = 64  # labels
LONGEST = 32  # tokens of a label, with its end
TIMES = 3  # the least number of rows with a label
SHARE = 0.95  # of the rows that have a label; the others are left out of the scores
_BLOCK = 2**14  # rows whose responses are in memory at once
_SEEN = 2**12  # rows of a table in which the common part of the prompts is found

DecodeFn = Callable[[list[int]], str]


class Choices(NamedTuple):
    """The possible answers as texts and as tokens, and a prompt that asks nothing."""

    texts: tuple[str, ...]  # A labels, without spaces around them
    tokens: np.ndarray  # [A, T] int32, 0 after the end of a label
    length: np.ndarray  # [A], int32, tokens of each label, at least 1
    null_prompt: np.ndarray  # [N], int32: what the prompts of all rows have in common


def find_choices(
    tables: Sequence[TokenTable],
    *,
    eos_id: int,
    decode_fn: DecodeFn,
    encode_fn: Callable[[str], list[int]],
    labels: Sequence[str] = (),
) -> Choices | None:
    """Returns the possible answers of labelled rows, see above; None if the rows have no labels.

    The tokens of a label are those of the rows' responses, without the end of a response. One that
    no row has is spelled with the space before it that all others have. Where the tokens of a label
    begin with those of another one, all labels keep their end: a text is at most as likely as its
    beginning.

    Args:
      tables: held-out rows, and those of the clients.
      eos_id: the token that ends a response.
      decode_fn: token ids without the end token -> text.
      encode_fn: text -> token ids, for given labels that no row has.
      labels: the possible answers, if they are known.
    """
    found = _responses(tables, eos_id=eos_id, decode_fn=decode_fn, at_most=0 if labels else MOST)
    texts = tuple(dict.fromkeys(label.strip() for label in labels)) or _labels_of(found)
    if not texts:
        return None
    seen = [decode_fn(found[text].tokens) for text in texts if text in found]
    spaces = {text[: len(text) - len(text.lstrip())] for text in seen}
    before = spaces.pop() if len(spaces) == 1 else ""
    made = [found[text].tokens if text in found else encode_fn(before + text) for text in texts]
    if _is_prefix_of_another(made):
        made = [[*ids, eos_id] for ids in made]
    tokens = np.zeros((len(made), max(map(len, made))), np.int32)
    for row, ids in zip(tokens, made, strict=True):
        row[: len(ids)] = ids
    length = np.array([len(ids) for ids in made], np.int32)
    return Choices(texts, tokens, length, np.array(_common_tokens(tables) or [eos_id], np.int32))


def right_choices(
    choices: Choices, table: TokenTable, rows: np.ndarray, *, eos_id: int, decode_fn: DecodeFn
) -> np.ndarray:
    """Returns the number of each row's label, int64 `[n]`; -1 for a cut or another response.

    Args:
      choices: the possible answers.
      table: tokenised rows.
      rows: `[n]` int, row numbers.
      eos_id: the token that ends a response.
      decode_fn: token ids without the end token -> text.
    """
    responses = response_tokens(table, rows, width=LONGEST + 1)
    distinct, which = np.unique(responses, axis=0, return_inverse=True)
    texts = [decode_fn([i for i in ids if i not in (-1, eos_id)]) for ids in distinct.tolist()]
    number = {text: i for i, text in enumerate(choices.texts)}
    found = np.array([number.get(text.strip(), -1) for text in texts], np.int64)[which.reshape(-1)]
    return found if table.is_cut is None else np.where(table.is_cut[rows], -1, found)


class _Response(NamedTuple):
    """A response that occurs in the rows."""

    tokens: list[int]  # without its end; empty for all responses that are too long
    rows: int  # number of rows


def _labels_of(found: Mapping[str, _Response]) -> tuple[str, ...]:
    """Returns the responses that are labels, in alphabetical order; none if there are too many."""
    often = {text: one.rows for text, one in found.items() if text and one.rows >= TIMES}
    total = sum(one.rows for one in found.values())
    is_labelled = 2 <= len(often) <= MOST and sum(often.values()) >= SHARE * total
    return tuple(sorted(often)) if is_labelled else ()


def _responses(
    tables: Sequence[TokenTable], *, eos_id: int, decode_fn: DecodeFn, at_most: int
) -> dict[str, _Response]:
    """Returns the responses of whole rows by text, with spaces around it removed.

    With `at_most`, it stops early, and returns nothing, if there are so many different responses
    that the rows have no labels.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for table in tables:
        whole = np.arange(len(table.length))
        whole = whole if table.is_cut is None else whole[~table.is_cut]
        for start in range(0, len(whole), _BLOCK):
            rows = response_tokens(table, whole[start : start + _BLOCK], width=LONGEST + 1)
            distinct, times = np.unique(rows, axis=0, return_counts=True)
            for ids, count in zip(distinct.tolist(), times.tolist(), strict=True):
                is_short = ids[-1] < 0
                counts[tuple(i for i in ids if i not in (-1, eos_id)) if is_short else ()] += count
            if at_most and len(counts) > at_most + (1 - SHARE) * counts.total():
                return {}
    found: dict[str, _Response] = {}
    for ids, count in counts.most_common():  # the usual tokens of a text come first
        text = decode_fn(list(ids)).strip()
        first, before = found.get(text, _Response(list(ids), 0))
        found[text] = _Response(first, before + count)
    return found


def _is_prefix_of_another(labels: Sequence[Sequence[int]]) -> bool:
    pairs = ((one, two) for one in labels for two in labels if one is not two)
    return any(two[: len(one)] == one for one, two in pairs)


def _common_tokens(tables: Sequence[TokenTable]) -> list[int]:
    """Returns the tokens with which all prompts begin, and those with which they end."""
    prompts = []
    for table in tables:
        rows = np.arange(min(len(table.length), _SEEN))
        sizes = table.prompt_length[rows].tolist()
        tokens = gather(table, rows)[0].tolist()
        prompts += [ids[:size] for ids, size in zip(tokens, sizes, strict=True)]
    first = common_start(prompts)
    last = common_start([ids[::-1] for ids in prompts])[::-1]
    both = min(map(len, prompts))
    return first + last[max(0, len(first) + len(last) - both) :]


def common_start(rows: Sequence[list[int]]) -> list[int]:
    """Returns the longest list with which all lists begin.

    >>> common_start([[1, 2, 3], [1, 2], [1, 2, 4]])
    [1, 2]
    """
    low, high = min(rows), max(rows)  # all others lie between these
    pairs = zip(low, high, strict=False)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(low), len(high)))
    return low[:equal]
