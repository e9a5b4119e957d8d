"""Several experiments, seeds or values in one flag."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from fedjax_post.experiments.flags.parse import CommandLine, changes_in

from fedjax_post.study.spec import Spec


def define_many(values: flags.FlagValues, *, usual: str, of: str) -> None:
    """Defines the flags of a program that carries out several runs.

    Args:
      values: where they are defined.
      usual: seeds where none are given.
      of: what the folder is of.
    """
    flags.DEFINE_list("seeds", usual.split(","), "of the runs", flag_values=values)
    where = f"a new folder, or that of a {of} to go on with (runs/<time>-{of})"
    flags.DEFINE_string("output_dir", None, where, flag_values=values)


def seeds(values: flags.FlagValues) -> list[int]:
    """Returns the seeds, as numbers.

    Raises:
      ValueError: if one is no whole number.
    """
    given = values.seeds
    if not given or not all(seed.strip().isdecimal() for seed in given):
        raise ValueError(f"--seeds={','.join(given)} must be whole numbers, such as 0,1,2")
    return [int(seed) for seed in given]


def experiments(line: CommandLine, flag: str) -> dict[str, Spec]:
    """Returns the experiments of a flag `name:flag=value:.., ..`, by their texts.

    Args:
      line: what was typed; its experiment is what they have in common.
      flag: algorithms with commas between them, each followed by flags of its own after colons.

    Raises:
      ValueError: if none is named or one is named twice, and for wrong flags.
    """
    entries = [entry for entry in _split(line.values[flag].value, ",") if entry]
    if not entries:
        raise ValueError(f"--{flag} names none; give some, such as fed_avg,scaffold")
    twice = [entry for entry in entries if entries.count(entry) > 1]
    if twice:
        raise ValueError(f"--{flag} has {twice[0]} twice; give it once")
    trusted = flag in line.by_hand
    return {entry: line.spec.put(_changes(entry, trusted=trusted)) for entry in entries}


def grid(entries: Sequence[str]) -> Mapping[str, list[Any]]:
    """Returns the values of `flag=value,value` by the paths of their fields.

    Raises:
      ValueError: for an entry that is no such text, and for wrong values.
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
        raise ValueError("--grid names nothing that varies; such as --grid=client_lr=0.1,0.3")
    return found


def _changes(entry: str, *, trusted: bool) -> dict[str, Any]:
    parts = _split(entry, ":")
    name = ":".join(part for part in parts if not re.match(r"\w+=", part))
    own = [f"--{part}" for part in parts if re.match(r"\w+=", part)]
    return {"method.params": {}} | changes_in([f"--algorithm={name}", *own], trusted=trusted)


def _split(text: str, separator: str) -> list[str]:
    """The pieces between separators that no parentheses enclose, stripped."""
    pieces, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces]
