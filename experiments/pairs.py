"""Writes preference pairs, as `--objective=dpo` reads them, from two published forms.

    python -m experiments.pairs transcripts <file of hh-rlhf> pairs.jsonl
    python -m experiments.pairs opposed <file of persona evaluations> pairs.jsonl --num_clients=16

`transcripts` reads whole dialogues in `chosen` and `rejected`: what both say up to the last
answer's beginning becomes the prompt. `opposed` reads yes-or-no questions with the answers that
match a behaviour and that do not. It gives each question to one client; every second client
prefers the answers that do not match.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_post.data.source import load_splits
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import parse

_SPEAKER = "\n\nAssistant:"
_MATCHING, _OTHER = "answer_matching_behavior", "answer_not_matching_behavior"
_CLIENTS = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _write(argv))


def _write(argv: Sequence[str]) -> int:
    words = ("transcripts or opposed", "the file to read", "the file to write")
    line = parse(argv, about=__doc__, words=words)
    if line.help is not None:
        print(line.help)
        return 0
    form, source, target = line.words
    forms: dict[str, Callable] = {"transcripts": transcripts, "opposed": opposed}
    if form not in forms:
        raise ValueError(f"{form} is no form of pairs; there are {', '.join(forms)}")
    given = {} if form == "transcripts" else {"num_clients": line.spec.data.num_clients or _CLIENTS}
    try:
        pairs = list(forms[form](load_splits(source).train, **given))
    except KeyError as error:
        raise ValueError(f"dataset={source} has no column {error}, which {form} needs") from None
    Path(target).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    print(f"{len(pairs):,} pairs in {target}")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
