"""Rows of two published forms as preference pairs, with the columns that `load_pairs` reads."""

import itertools
from collections.abc import Iterator
from typing import Any

_SPEAKER = "\n\nAssistant:"
_MATCHING, _OTHER = "answer_matching_behavior", "answer_not_matching_behavior"


def transcripts(rows: Any) -> Iterator[dict[str, str]]:
    """Yields pairs of the last answers of dialogues, with all before them as the prompt.

    Rows whose dialogues part before their first answer are left out.
    """
    for row in rows:
        one, other = row["chosen"], row["rejected"]
        alike = itertools.takewhile(lambda two: two[0] == two[1], zip(one, other, strict=False))
        start = one.rfind(_SPEAKER, 0, sum(1 for _ in alike))
        if start >= 0:
            start += len(_SPEAKER)
            yield {"prompt": one[:start], "chosen": one[start:], "rejected": other[start:]}


def opposed(rows: Any, num_clients: int) -> Iterator[dict[str, str]]:
    """Yields a pair for each question; clients with an odd number prefer the other answer."""
    for number, row in enumerate(rows):
        client = number // 2 % num_clients  # two in a row, since yes and no alternate in the files
        answers = [row[_MATCHING], row[_OTHER]]
        chosen, rejected = answers[::-1] if client % 2 else answers
        yield {
            "prompt": row["question"],
            "chosen": chosen,
            "rejected": rejected,
            "client": f"client {client}",
            "task": ("matching", "opposed")[client % 2],
        }
