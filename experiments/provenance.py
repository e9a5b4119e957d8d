"""Where a flag's value comes from: this command line, or a file that somebody else may have made.

Flag files, the flags of a run that is resumed, and ladders are data: what they name is not run,
and nothing secret goes where they point, unless this command line says so too. Arguments that
were read from a file remember it, on whatever way they reach the parser.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

# Flags whose value may name a function of the user's, as package.module:function.
_CODE = ("algorithm", "reward")
_TRUST = re.compile(r"--?trust_code(=(true|t|1|yes|y))?", re.IGNORECASE)


class FromFile(str):
    """An argument, or a value, that stands in a file."""

    file: str


def from_file(arguments: Iterable[str], file: str | Path | None) -> list[str]:
    """Returns arguments that remember the file they were read from; as they are without one."""
    return [_marked(argument, str(file)) if file else argument for argument in arguments]


def source(argument: str) -> str | None:
    """Returns the file that an argument or a value was read from; None: the command line."""
    return argument.file if isinstance(argument, FromFile) else None


def expand(argv: Sequence[str]) -> list[str]:
    """Returns a command line with its flag files' lines in their place, marked.

    Raises:
      flags.Error: for a flag file that cannot be opened.
      ValueError: for one that is no text, and for one that a file of another kind names.
    """
    expanded, rest = [], list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*expanded, argument, *rest]
        if not re.match(r"--?flagfile(=|$)", argument):
            expanded.append(argument)
            continue
        if (file := source(argument)) is not None:
            raise ValueError(
                f"{file} names another file, {argument}; give that on the command line"
            )
        path = argument.partition("=")[2] if "=" in argument else rest.pop(0) if rest else ""
        try:
            lines = flags.FlagValues().read_flags_from_files([f"--flagfile={path}"])
        except UnicodeDecodeError:
            raise ValueError(
                f"--flagfile={path} is no text; give a file with a flag a line"
            ) from None
        expanded += from_file(lines, path)
    return expanded


def file_of(argv: Sequence[str], name: str, value: str) -> str | None:
    """Returns the file that a flag has its value from; None if it stands on the command line.

    Args:
      argv: an expanded command line, the lines of files among it marked.
      name: of the flag.
      value: that it has.
    """
    files = []
    for i, argument in enumerate(argv):
        pair = [argument]
        if argument in (f"--{name}", f"-{name}"):
            pair = list(argv[i : i + 2])
        if "=".join(pair).lstrip("-") == f"{name}={value}":
            files.append(next(filter(None, map(source, pair)), None))
    return None if None in files or not files else files[-1]


def check_code(argv: Sequence[str], options: flags.FlagValues) -> None:
    """Refuses to run code that a file names and this command line does not.

    Args:
      argv: as for `file_of`.
      options: its values.

    Raises:
      ValueError: naming file, flag, value and the remedy.
    """
    trusted = any(_TRUST.fullmatch(argument) and not source(argument) for argument in argv)
    for name in _CODE:
        value = options[name].value if name in options else None
        if value is None or ":" not in value or trusted:
            continue
        if (file := file_of(argv, name, value)) is not None:
            raise ValueError(
                f"{file} names code to run, --{name}={value}; if you trust it, give --trust_code, "
                f"or --{name} itself, on the command line"
            )


def _marked(argument: str, file: str) -> FromFile:
    marked = FromFile(argument)
    marked.file = source(argument) or file
    return marked
