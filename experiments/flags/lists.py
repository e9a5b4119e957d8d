"""Flags that hold several experiments, seeds or values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from fedjax_post.experiments.flags.parse import CommandLine, changes_in, define_ask_again
from fedjax_post.study.spec import Spec


def define_many(values: flags.FlagValues, *, usual: str, of: str) -> None:
    """Defines the flags of a program that carries out several runs.

    Args:
      values: where they are defined.
      usual: the default seeds, with commas between.
      of: what the folder contains, for its help.
    """
    flags.DEFINE_list("seeds", usual.split(","), "seeds of the runs", flag_values=values)
    where = f"a new folder, or that of a {of} to continue (runs/<time>-{of})"
    flags.DEFINE_string("output_dir", None, where, flag_values=values)
    define_ask_again(values)


def seeds(values: flags.FlagValues) -> list[int]:
    """Returns the seeds, as numbers.

    Raises:
      ValueError: if there are none, or one is not a whole number.
    """
    given = values.seeds
    if not given or not all(seed.strip().isdecimal() for seed in given):
        raise ValueError(f"--seeds={','.join(given)} must be whole numbers, such as 0,1,2")
    return [int(seed) for seed in given]


def experiments(line: CommandLine, flag: str) -> dict[str, Spec]:
    """Returns the experiments that a flag `name:flag=value:.., ..` describes, by their texts.

    Args:
      line: the command line; its experiment is what they have in common.
      flag: name of the flag: algorithms with commas between, each followed by its flags after
        colons.

    Raises:
      ValueError: if there is none or one is given twice, and for wrong flags.
    """
    entries = [entry for entry in _split(line.values[flag].value, ",") if entry]
    if not entries:
        raise ValueError(f"--{flag} is empty; give some, such as fed_avg,scaffold")
    twice = [entry for entry in entries if entries.count(entry) > 1]
    if twice:
        raise ValueError(f"--{flag} has {twice[0]} twice; give it once")
    trusted = flag in line.by_hand
    return {entry: line.spec.put(_changes(entry, trusted=trusted)) for entry in entries}


def grid(entries: Sequence[str]) -> Mapping[str, list[Any]]:
    """Returns the values of `flag=value,value` by the paths of their fields.

    Raises:
      ValueError: for an entry of another form, for wrong values, and if nothing varies.
    """
    found: dict[str, list[Any]] = {}
    for entry in entries:
        name, sign, values = entry.partition("=")
        if not sign or not values:
            raise ValueError(f"--grid={entry}: write flag=value,value, such as client_lr=0.1,0.3")
        for value in _split(values, ","):
            ((path, item),) = changes_in([f"--{name}={value}"]).items()
            found.setdefault(path, []).append(item)
    if not found:
        raise ValueError("--grid is empty; give what varies, such as --grid=client_lr=0.1,0.3")
    return found


def _changes(entry: str, *, trusted: bool) -> dict[str, Any]:
    parts = _split(entry, ":")
    name = ":".join(part for part in parts if not re.match(r"\w+=", part))
    own = [f"--{part}" for part in parts if re.match(r"\w+=", part)]
    return {"method.params": {}} | changes_in([f"--algorithm={name}", *own], trusted=trusted)


def _split(text: str, separator: str) -> list[str]:
    """The pieces between separators that are outside parentheses, stripped."""
    pieces, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces]
