"""Reads the command line of a program that takes folders and no experiment."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags


class Words(NamedTuple):
    """A parsed command line."""

    words: tuple[str, ...]  # arguments that are not flags
    values: flags.FlagValues
    help: str | None  # the help, if it was asked for; to be printed in place of running


def parse(
    argv: Sequence[str], *, about: str | None, define: Callable[[flags.FlagValues], None]
) -> Words:
    """Returns a parsed command line.

    Args:
      argv: program name, words and flags.
      about: the program's description, for `--help`.
      define: defines the program's flags.

    Raises:
      ValueError: for an unknown flag or a wrong value.
    """
    values = flags.FlagValues()
    define(values)
    own = values.get_help()
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    try:
        words = values(list(argv))[1:]
    except flags.Error as error:
        raise ValueError(f"{error}; --help lists the flags") from None
    return Words(tuple(words), values, f"{about}\n{own}" if values.help else None)
