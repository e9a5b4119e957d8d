"""What exact match is worth: answers that need no model, from the training rows alone.

A model that follows instructions must be far above both: copying the answer of
the most similar training instruction, and always giving the commonest answer.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share of answers that equal their reference, spaces around them aside, in [0, 1].

    Raises:
      ValueError: if the lengths differ or there is nothing to compare.
    """
    if len(answers) != len(references) or not references:
        raise ValueError(
            f"got {len(answers)} answers for {len(references)} references; pass one for each"
        )
    pairs = zip(answers, references, strict=True)
    return sum(answer.strip() == reference.strip() for answer, reference in pairs) / len(answers)


def majority_answers(responses: Sequence[str], num_questions: int) -> list[str]:
    """The commonest training response (the first of equals), once for every question."""
    return [Counter(responses).most_common(1)[0][0]] * num_questions


def nearest_answers(
    instructions: Sequence[str], responses: Sequence[str], *, questions: Sequence[str]
) -> list[str]:
    """The response of the training instruction nearest to each question.

    Nearest is the largest Jaccard similarity of the sets of words, |a & b| / |a | b|,
    and the first of equals. Costs one matrix product of
    `[questions, words] x [words, instructions]`.

    Args:
      instructions: of the training rows.
      responses: of the training rows, in the same order.
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
    # words that no training row has count in a question's size, though they have no column
    sizes = np.array([len(_words(text)) for text in questions], np.float32)
    union = sizes[:, None] + known.sum(1)[None] - shared
    return [responses[index] for index in np.argmax(shared / np.maximum(union, 1), axis=1)]


def _words(text: str) -> set[str]:
    """The words of a text, without case and punctuation."""
    return {word.strip(".,:;?!") for word in text.lower().split()}


def _incidence(texts: Sequence[str], columns: dict[str, int]) -> np.ndarray:
    """Which word is in which text: float32 zeros and ones `[texts, words]`."""
    table = np.zeros((len(texts), len(columns)), np.float32)
    for row, text in enumerate(texts):
        table[row, [columns[word] for word in _words(text) if word in columns]] = 1
    return table
