"""Prints the answers of a run, of an adapter's folder or of a base, word by word.

    python -m experiments.generate runs/<a run> --prompt='sort: pear fig'
    python -m experiments.generate runs/<a run>

Without --prompt it reads questions from the terminal until an empty line or Ctrl-D; a model with
a chat template sees the earlier ones.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from fedjax_post import study
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _generate(argv))


def _define(values: flags.FlagValues) -> None:
    give: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("prompt", None, "one question; the program ends after its answer", **give)
    flags.DEFINE_integer("max_new_tokens", 256, "tokens of an answer", lower_bound=1, **give)
    about = "of sampling; 0 takes the most likely token"
    flags.DEFINE_float("temperature", 0.0, about, lower_bound=0.0, **give)


def _generate(argv: Sequence[str]) -> int:
    words = ("a run, an adapter's folder or a base",)
    line = parse(argv, about=__doc__, own=[_define], words=words)
    if line.help is not None:
        print(line.help)
        return 0
    served = study.serve(line.words[0], line.typed)
    sampling = {
        "max_new_tokens": line.values.max_new_tokens,
        "temperature": line.values.temperature,
    }
    sampling["seed"] = line.spec.seed
    if line.values.prompt is not None:
        _answer(served, [{"role": "user", "content": line.values.prompt}], sampling)
        return 0
    turns: list[dict[str, str]] = []
    for question in iter(_ask, ""):
        turns.append({"role": "user", "content": question})
        if not served.tokenizer.chat_template:
            turns = turns[-1:]
        turns.append({"role": "assistant", "content": _answer(served, turns, sampling)})
    return 0


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _answer(served: study.Served, turns: Sequence[dict[str, str]], sampling: dict) -> str:
    pieces = []
    for piece in study.stream(served, turns, **sampling):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)


if __name__ == "__main__":
    sys.exit(main())
