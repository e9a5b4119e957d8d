"""Audit of an open corpus: contamination of an evaluation, and memorisation by the model.

Contamination is measured from the corpus alone: whether an evaluation row shares an n-gram of
words with a document (Brown et al., "Language Models are Few-Shot Learners", 2020,
arXiv:2005.14165, appendix C, where n is 8 to 13 depending on the length of the rows), and whether
a document contains the whole question or the whole row. Memorisation compares documents that the
model has read with fresh ones of the same kind: the difference of their losses (Yeom et al.,
"Privacy Risk in Machine Learning", 2018, arXiv:1709.01604), and how often greedy decoding
continues the first half of a document with exactly its second half (Carlini et al., "Quantifying
Memorization Across Neural Language Models", 2023, arXiv:2202.07646). Each number is meaningful
only in comparison with the other group. If the corpus is closed, neither can be measured, and
`check_corpus` raises an error.

| case | result |
| --- | --- |
| a row of fewer words than n | the whole row counts as its n-gram |
| a question that is part of a longer one in the corpus | counted: its words were read |
| a corpus without documents | ValueError |
| a document of fewer than 4 tokens | left out of memorisation |
| an evaluation row inserted into the corpus | counted in all three shares |
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import AccessError
from fedjax_post.model.generate import generate
from fedjax_post.model.views import LanguageModel
from fedjax_post.openness.passport import Passport

_BATCH = 64
Row = tuple[str, str]  # a question without its template, and its answer


class Contamination(NamedTuple):
    """Shares of evaluation rows that occur in documents, each in [0, 1]."""

    ngrams: float  # rows with an n-gram of words in a document
    questions: float  # rows whose whole question is in a document
    rows: float  # rows whose question directly followed by the answer is in a document
    num_rows: int
    num_documents: int


class Memorisation(NamedTuple):
    """Results on documents that were read and on fresh ones; equal if nothing is memorised."""

    read_loss: float  # nats per token, mean over documents
    fresh_loss: float  # nats per token, mean over documents
    membership: float  # share of pairs whose read document has the lower loss; 0.5 by chance
    read_extracted: float  # share whose second half is reproduced exactly
    fresh_extracted: float  # share whose second half is reproduced exactly
    num_documents: int  # of the smaller group


class Audit(NamedTuple):
    """The results of `audit`."""

    contamination: Contamination
    memorisation: Memorisation


def check_corpus(passport: Passport) -> None:
    """Checks that a model's corpus is open by its passport.

    Raises:
      AccessError: if it is not, with the passport's statement and its source.
    """
    datasets = passport.components.get("datasets")
    released = datasets.released if datasets else "unknown"
    if released == "yes":
        return
    source = f"{datasets.source}, {datasets.date}" if datasets else "no statement"
    raise AccessError(
        f"{passport.name}: the component datasets is released: {released} ({source}); without the "
        "documents that the model has read, neither contamination nor memorisation can be "
        "measured: its corpus would have to be open"
    )


def audit(
    model: LanguageModel,
    tokenizer: Any,
    documents: Iterable[str],
    rows: Sequence[Row],
    *,
    passport: Passport,
    fresh: Sequence[str],
    n: int = 8,
) -> Audit:
    """Returns how much of an evaluation is in a corpus, and what the model remembers of it.

    Args:
      model: the base model; WEIGHTS access is enough, as it is only evaluated.
      tokenizer: its Hugging Face tokenizer.
      documents: texts that the model has read; iterated once, so a generator is possible.
      rows: questions and answers of the evaluation.
      passport: of the model.
      fresh: texts of the same kind that it has not read; about as many documents, evenly spread,
        are tested for memorisation.
      n: number of words in an n-gram.

    Raises:
      AccessError: if the corpus is not open by the passport.
      ValueError: if there is no document, no row or no fresh text, or n < 1.
    """
    check_corpus(passport)
    probed: list[str] = []
    contaminated = contamination(_sample(documents, probed, len(fresh)), rows, n=n)
    return Audit(contaminated, memorisation(model, tokenizer, probed, fresh))


def contamination(documents: Iterable[str], rows: Sequence[Row], *, n: int = 8) -> Contamination:
    """Returns the shares of rows that occur, in part or completely, in documents.

    Words are compared without case and punctuation. The memory needed depends on the rows only.

    Args:
      documents: texts that the model has read; iterated once.
      rows: questions and answers of the evaluation.
      n: number of words in an n-gram.

    Raises:
      ValueError: if there is no document or no row, or n < 1.

    >>> rows = [("what is red", "a rose"), ("what is tall", "a tree")]
    >>> contamination(["He asked: what is red? A rose."], rows, n=3).rows
    0.5
    """
    if n < 1 or not rows:
        raise ValueError(f"n must be at least 1 and rows must be given, got {n} and {len(rows)}")
    # sequence of words to search for -> the (kind, row) pairs for which it is evidence
    sought: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for number, (question, answer) in enumerate(rows):
        asked = _words(question)
        whole = asked + _words(answer)
        grams = {whole[i : i + n] for i in range(max(1, len(whole) - n + 1))}
        for kind, runs in enumerate((grams, {asked}, {whole})):
            for run in runs:
                sought.setdefault(run, []).append((kind, number))
    lengths = {len(run) for run in sought} - {0}
    found: set[tuple[int, int]] = set()
    count = 0
    for count, text in enumerate(documents, 1):  # noqa: B007
        words = _words(text)
        for length in lengths:
            for start in range(len(words) - length + 1):
                found.update(sought.get(words[start : start + length], ()))
    if not count:
        raise ValueError("the corpus has no documents; pass those that the model has read")
    ngrams, questions, whole_rows = (
        sum(kind == each for kind, _ in found) / len(rows) for each in range(3)
    )
    return Contamination(ngrams, questions, whole_rows, len(rows), count)


def memorisation(
    model: LanguageModel, tokenizer: Any, read: Sequence[str], fresh: Sequence[str]
) -> Memorisation:
    """Returns how much better a model predicts texts that it has read than fresh ones.

    Args:
      model: used for scores and greedy continuations.
      tokenizer: its Hugging Face tokenizer.
      read: texts that the model was trained on.
      fresh: texts of the same kind that it was not trained on.

    Raises:
      ValueError: if a group has no text of at least 4 tokens.
    """
    groups = [_tokenise(tokenizer, texts) for texts in (read, fresh)]
    for name, group in zip(("read", "fresh"), groups, strict=True):
        if not group:
            raise ValueError(f"no {name} text has 4 tokens or more; pass longer ones")
    losses = [_losses(model, group) for group in groups]
    lower = losses[0][:, None] < losses[1][None, :]
    ties = losses[0][:, None] == losses[1][None, :]
    return Memorisation(
        read_loss=float(losses[0].mean()),
        fresh_loss=float(losses[1].mean()),
        membership=float((lower + 0.5 * ties).mean()),
        read_extracted=_share_extracted(model, tokenizer, groups[0]),
        fresh_extracted=_share_extracted(model, tokenizer, groups[1]),
        num_documents=min(map(len, groups)),
    )


def _words(text: str) -> tuple[str, ...]:
    """Returns the words of a text in lower case, without punctuation."""
    return tuple(re.findall(r"\w+", text.lower()))


def _sample(documents: Iterable[str], kept: list[str], number: int) -> Iterable[str]:
    """Yields the documents, and collects in `kept` at least `number` (if any), evenly spread."""
    stride = 1
    for index, text in enumerate(documents):
        if index % stride == 0:
            kept.append(text)
        if len(kept) == 2 * number:
            kept[:] = kept[::2]
            stride *= 2
        yield text


def _tokenise(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    rows = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    return [row for row in rows if len(row) >= 4]


def _losses(model: LanguageModel, rows: list[list[int]]) -> np.ndarray:
    """Returns the nats per token of each row without its first token, float64, in any order."""
    found = []
    for batch in _batches(rows):
        tokens, mask = _pad(batch, left=False)
        log_probs = np.asarray(model.scores({}, jnp.asarray(tokens)).log_probs, np.float64)
        found.append(-(log_probs * mask[:, 1:]).sum(axis=1) / mask[:, 1:].sum(axis=1))
    return np.concatenate(found)


def _share_extracted(model: LanguageModel, tokenizer: Any, rows: list[list[int]]) -> float:
    """Returns the share of rows whose first half is greedily continued with the second half."""
    right = 0
    for batch in _batches(rows):
        halves = [len(row) // 2 for row in batch]
        tokens, mask = _pad([row[:h] for row, h in zip(batch, halves, strict=True)], left=True)
        ends = [row[h:] for row, h in zip(batch, halves, strict=True)]
        answers = generate(
            model,
            {},
            jnp.asarray(tokens),
            jnp.asarray(mask),
            max_new_tokens=_round_up(max(map(len, ends))),
            eos_id=(),  # a document may contain the end of a turn
            pad_id=0,
        )
        found = np.asarray(answers).tolist()
        right += sum(row[: len(end)] == end for row, end in zip(found, ends, strict=True))
    return right / len(rows)


def _batches(rows: list[list[int]]) -> Iterable[list[list[int]]]:
    """Returns batches of rows with similar lengths; means do not depend on the order."""
    ordered = sorted(rows, key=len)
    return (ordered[start : start + _BATCH] for start in range(0, len(ordered), _BATCH))


def _pad(rows: list[list[int]], *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens int32 and mask bool, `[B, L]`, with L rounded up to limit compilations."""
    length = _round_up(max(map(len, rows)))
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(0, len(row))
        tokens[number, place], mask[number, place] = row, True
    return tokens, mask


def _round_up(length: int) -> int:
    return -(-length // 32) * 32
