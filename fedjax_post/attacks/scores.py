"""How much of the rows an attack has found: ROUGE-1, ROUGE-2 and exact rows.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; words and F-measures as in the
package `rouge_score`, without stemming. Guessed rows are matched to true rows one to one, the most
similar pair first. A true row without a match scores 0; guessed rows too many are counted, but cost
nothing, as in the scores of DAGER.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Row = Sequence[int]


class Score(NamedTuple):
    """How well guessed rows match the true rows."""

    rouge1: float  # mean over the true rows, in [0, 100]
    rouge2: float
    exact: float  # share of the true rows that were found, token by token
    rows: int  # true rows
    guessed: int  # guessed rows


def rouge(guess: str, truth: str, n: int) -> float:
    """Returns the F-measure of the common n-grams of words, in [0, 1].

    >>> rouge("the cat sat", "the cat sat down", 1).__round__(3)
    0.857

    Args:
      guess: a text.
      truth: a text.
      n: words in a gram.
    """
    one, other = _grams(guess, n), _grams(truth, n)
    common = sum((one & other).values())
    if not common:
        return 0.0
    precision, recall = common / sum(one.values()), common / sum(other.values())
    return 2 * precision * recall / (precision + recall)


def score(
    guesses: Sequence[Row],
    truth: Sequence[Row],
    *,
    decode_fn: Callable[[Row], str],
    eos_id: int,
) -> Score:
    """Returns how much of the true rows was found.

    Args:
      guesses: tokens of the guessed rows.
      truth: tokens of the true rows, without padding.
      decode_fn: tokens -> text.
      eos_id: is left out where a row ends with it, since an attack cannot see it.

    Raises:
      ValueError: without true rows.
    """
    if not truth:
        raise ValueError("`truth` is empty; give the rows that the clients trained on")
    bare = lambda row: tuple(row[:-1] if len(row) and row[-1] == eos_id else row)
    guesses, truth = [bare(row) for row in guesses], [bare(row) for row in truth]
    texts, true_texts = ([decode_fn(row) for row in rows] for rows in (guesses, truth))
    found = np.array([[rouge(g, t, 1) for t in true_texts] for g in texts])
    pairs = _match(found.reshape(len(texts), len(truth)))
    each = lambda n: sum(rouge(texts[g], true_texts[t], n) for g, t in pairs)
    exact = sum((Counter(guesses) & Counter(truth)).values())
    number = len(truth)
    return Score(
        100 * each(1) / number, 100 * each(2) / number, exact / number, number, len(guesses)
    )


def tokens_found(guesses: Sequence[Row], truth: Sequence[Row]) -> int:
    """Returns how many tokens of the true rows stand in the guessed rows, whatever their order.

    Rows are matched one to one, those with the most common tokens first.

    >>> tokens_found([(1, 2, 3), (7,)], [(3, 3, 2), (8,)])
    2
    """
    common = lambda a, b: sum((Counter(a) & Counter(b)).values())
    found = np.array([[common(g, t) for t in truth] for g in guesses], float)
    shaped = found.reshape(len(guesses), len(truth))
    return int(sum(shaped[pair] for pair in _match(shaped)))


def _match(similar: np.ndarray) -> list[tuple[int, int]]:
    """Returns pairs (row, column), the largest entries first, each row and column at most once."""
    pairs, left = [], similar.copy()
    for _ in range(min(similar.shape)):
        best = np.unravel_index(np.argmax(left), left.shape)
        if left[best] <= 0:
            break
        pairs.append((int(best[0]), int(best[1])))
        left[best[0]], left[:, best[1]] = -1, -1
    return pairs


def _grams(text: str, n: int) -> Counter:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
