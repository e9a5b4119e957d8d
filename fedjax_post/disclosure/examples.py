"""Finds the rows of clients that a prompt of tokens shows as examples.

| in a prompt | what is counted |
| --- | --- |
| a complete question and its answer after it | both, and one label |
| a complete question of at least 4 tokens, without its answer | the question |
| a shorter question without its answer | nothing: public prompts contain such words by chance |
| a part of a question | nothing: it is not found |
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

_KEY = 4  # tokens by which questions are looked up, and those that do not occur by chance


class Shown(NamedTuple):
    """The examples in a prompt."""

    num_rows: int = 0
    tokens: int = 0  # of questions and answers
    labels: int = 0  # examples with their answers


Row = tuple[Sequence[int], Sequence[int]]  # token ids of a question and of its answer


class Examples:
    """The rows of clients, as a prompt would show them.

    Args:
      rows: their questions and answers without special tokens, or a function that returns them,
        which is called when a prompt is first searched.
    """

    def __init__(self, rows: Iterable[Row] | Callable[[], Iterable[Row]]):
        self._rows = rows

    @functools.cached_property
    def _index(self) -> dict[int, dict[tuple[int, ...], dict[tuple[int, ...], set]]]:
        """Returns key length -> first tokens -> question -> its answers."""
        index: dict[int, dict] = {}
        for question, answer in self._rows() if callable(self._rows) else self._rows:
            if len(question):
                ids = tuple(int(token) for token in question)
                same = index.setdefault(min(_KEY, len(ids)), {}).setdefault(ids[:_KEY], {})
                same.setdefault(ids, set()).add(tuple(int(token) for token in answer))
        return index

    def find(self, prompt: Iterable[int]) -> Shown:
        """Returns the examples in a prompt, from left to right, without overlaps.

        >>> Examples([((5, 6), (7,))]).find([1, 5, 6, 7, 2])
        Shown(num_rows=1, tokens=3, labels=1)
        """
        return self._find(tuple(int(token) for token in prompt))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a run has one, and asks all rows after a prompt
    def _find(self, prompt: tuple[int, ...]) -> Shown:
        num_rows = tokens = labels = at = 0
        while at < len(prompt):
            has_label, size = self._longest(prompt, at)
            num_rows, tokens, labels = num_rows + bool(size), tokens + size, labels + has_label
            at += max(1, size)
        return Shown(num_rows, tokens, labels)

    def _longest(self, prompt: tuple[int, ...], at: int) -> tuple[bool, int]:
        """Returns the example that begins at a place: whether with its answer, and its length."""
        best = False, 0
        for width, keys in self._index.items():
            for question, answers in keys.get(prompt[at : at + width], {}).items():
                end = at + len(question)
                if prompt[at:end] != question:
                    continue
                best = max(best, (False, len(question) if len(question) >= _KEY else 0))
                for answer in answers:
                    if answer and prompt[end : end + len(answer)] == answer:
                        best = max(best, (True, len(question) + len(answer)))
        return best
