"""Baselines for exact match: answers without a model, from the training rows alone.

A model that follows instructions must score far above both baselines: the answer of
the most similar training instruction, and always the most frequent answer.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of answers that equal their reference, ignoring spaces around them.

    Raises:
      ValueError: if the lengths differ or there is nothing to compare.

    Example:
      >>> exact_match(["cold wet", "dry"], ["cold wet", "soft"])
      0.5
    """
    if len(answers) != len(references) or not references:
        raise ValueError(
            f"got {len(answers)} answers for {len(references)} references; pass one for each"
        )
    pairs = zip(answers, references, strict=True)
    return sum(answer.strip() == reference.strip() for answer, reference in pairs) / len(answers)


def majority_answers(responses: Sequence[str], num_questions: int) -> list[str]:
    """Returns the most frequent training response (the first of equals), for every question."""
    return [Counter(responses).most_common(1)[0][0]] * num_questions


def nearest_answers(
    instructions: Sequence[str], responses: Sequence[str], *, questions: Sequence[str]
) -> list[str]:
    """Returns the response of the training instruction that is nearest to each question.

    The nearest instruction has the largest Jaccard similarity of the sets of words,
    |a & b| / |a | b|; the first of equals is taken. This costs one matrix product of
    `[questions, words] x [words, instructions]`.

    Args:
      instructions: those of the training rows.
      responses: those of the training rows, in the same order.
      questions: held-out instructions.

    Returns:
      One training response for each question.
    """
    columns: dict[str, int] = {}
    for text in instructions:
        for word in _words(text):
            columns.setdefault(word, len(columns))
    known, asked = _incidence(instructions, columns), _incidence(questions, columns)
    shared = asked @ known.T  # [questions, instructions]
    # words that are in no training row have no column, but count in a question's size
    sizes = np.array([len(_words(text)) for text in questions], np.float32)
    union = sizes[:, None] + known.sum(1)[None] - shared
    return [responses[index] for index in np.argmax(shared / np.maximum(union, 1), axis=1)]


def _words(text: str) -> set[str]:
    """Returns the words of a text, in lower case and without punctuation."""
    return {word.strip(".,:;?!") for word in text.lower().split()}


def _incidence(texts: Sequence[str], columns: dict[str, int]) -> np.ndarray:
    """Returns which word is in which text: float32 zeros and ones `[texts, words]`."""
    table = np.zeros((len(texts), len(columns)), np.float32)
    for row, text in enumerate(texts):
        table[row, [columns[word] for word in _words(text) if word in columns]] = 1
    return table
