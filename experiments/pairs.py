"""Writes preference pairs, as `--objective=dpo` reads them, from two published forms.

    python -m experiments.pairs transcripts <file of hh-rlhf> pairs.jsonl
    python -m experiments.pairs opposed <file of persona evaluations> pairs.jsonl --num_clients=16

`transcripts` reads whole dialogues in `chosen` and `rejected`: what both say up to the last
answer's beginning becomes the prompt. `opposed` reads yes-or-no questions with the answers that
match a behaviour and that do not. It gives each question to one client; every second client
prefers the answers that do not match.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fedjax_post.data.pair_forms import opposed, transcripts
from fedjax_post.data.source import load_splits
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import parse

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


if __name__ == "__main__":
    sys.exit(main())
