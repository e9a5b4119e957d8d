"""What the built-in bases read, once more: their corpora are code, so that they can be audited."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fedjax_post.data.builtin import corpus, instruct


class Reading(NamedTuple):
    """How `experiments.pretrain` drew a base's documents: a stream of them for each call."""

    document_fn: Callable[[random.Random], Iterable[tuple[str, bool]]]
    stream: str  # beginning of the stream's seed
    num_calls: int


def _formal(rng: random.Random) -> list[tuple[str, bool]]:
    text, answer = corpus.document(rng)
    return [(text, False), (answer, True)]


READINGS = {
    "builtin": Reading(_formal, "corpus", 70),
    "builtin-instruct": Reading(instruct.document, "instruct corpus", 80),
    "builtin-small": Reading(instruct.document, "instruct corpus", 120),
}


def read_texts(base: str, *, per_call: int = 100, seed: int = 0) -> Iterator[str]:
    """Yields documents that a base was trained on, the first ones of every call.

    Args:
      base: a name in `READINGS`.
      per_call: documents of each call, at most 1000, of the two to ten thousand that it read.
      seed: of the training.

    Raises:
      ValueError: for another base.
    """
    reading = _find(base)
    for call in range(reading.num_calls):
        yield from itertools.islice(_texts(reading, f"{seed} {call}"), per_call)


def fresh_texts(base: str, num_texts: int, *, seed: int = 0) -> list[str]:
    """Returns documents of the same kinds that the base has not read, but for chance repeats."""
    return list(itertools.islice(_texts(_find(base), f"fresh {seed}"), num_texts))


def _find(base: str) -> Reading:
    if base not in READINGS:
        raise ValueError(f"the corpus of {base} is not ours; there are {', '.join(READINGS)}")
    return READINGS[base]


def _texts(reading: Reading, seed: str) -> Iterator[str]:
    rng = random.Random(f"{reading.stream} {seed}")
    while True:
        pieces = [text for text, _ in reading.document_fn(rng) if text]
        # an end of turn stands by itself: its space is the one before the next word
        text = " ".join(pieces)
        for mark in (corpus.BOS, corpus.EOS, "\n"):
            text = text.replace(f" {mark}", mark)
        yield text.replace(f"{corpus.BOS} ", corpus.BOS).replace(f"{corpus.EOS} ", corpus.EOS)
