"""Reads a command line: an experiment, and the flags that concern this process alone."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.experiments.flags import help
from fedjax_post.experiments.flags.define import FLAGS, changes_of, define_fields, define_own
from fedjax_post.study import factories
from fedjax_post.study.files import check_trusted, read_spec
from fedjax_post.study.folder import spec_file
from fedjax_post.study.spec import Spec

Definer = Callable[[flags.FlagValues], None]


class CommandLine(NamedTuple):
    """A parsed command line."""

    spec: Spec
    values: flags.FlagValues  # all flags, those outside the experiment included
    typed: Mapping[str, Any]  # fields for which flags were given, by path
    by_hand: frozenset[str]  # flags on the command line itself, not in a flag file
    words: tuple[str, ...]  # arguments that are not flags
    help: str | None  # the help, if it was asked for; to be printed in place of running


def define_launch(values: flags.FlagValues) -> None:
    """Defines the flags of a run that are not part of the experiment."""
    give: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("output_dir", None, "a new folder (runs/<time>-<algorithm>)", **give)
    flags.DEFINE_bool("resume", False, "continue the run in --output_dir", **give)
    flags.DEFINE_string("spec", None, "start from a specification, a file spec.json", **give)
    trust = "import functions that a run's folder or a file names"
    flags.DEFINE_bool("trust_code", False, trust, **give)
    flags.DEFINE_bool("dry_run", False, "print what the run needs, and exit", **give)
    define_ask_again(values)


def define_ask_again(values: flags.FlagValues) -> None:
    """Defines what becomes of the calls to a provider that a killed process had in progress."""
    about = "when continuing: repeat calls that may have been paid already"
    flags.DEFINE_bool("ask_again", False, about, flag_values=values)


def parse(
    argv: Sequence[str],
    *,
    about: str,
    own: Sequence[Definer] = (),
    without: Sequence[str] = (),
    words: Sequence[str] = (),
) -> CommandLine:
    """Returns a parsed command line.

    With `--resume`, fields without a flag come from the run in `--output_dir`; with `--spec`,
    from that file.

    Args:
      argv: program name and flags.
      about: the program's description, for `--help`.
      own: functions that define the program's own flags.
      without: flags that may not be given, since the program sets them by flags of its own.
      words: what each argument without a flag stands for; all must be given.

    Raises:
      ValueError: for arguments that are not flags, unknown flags, wrong values, and code that
        a file names without being trusted.
      OSError: for files that cannot be read.
    """
    _check_flag_files(argv)
    group = help.requested_group(argv)
    argv = [given for given in argv if group is None or not _asks_help(given)]
    known = dict(ALGORITHMS)
    values = _define(known, own)
    _parse(values, argv, known_only=True)
    stored, source = (Spec(), None) if group is not None else _read_stored(values)
    first = changes_of(values, [name for name in FLAGS if values[name].present])
    hand = _by_hand(argv, own)
    if group is None:
        trust = "trust_code" in hand and hand.trust_code
        typed = changes_of(hand, [name for name in FLAGS if hand[name].present])
        where = source or "the flag file"
        check_trusted(_put(stored, first), typed, source=where, trust_code=trust)
    name = first.get("method.name", stored.method.name)
    if name not in known:
        known[name] = factories.find_factory(name)
    values = _define(known, own)
    rest = _parse(values, argv)
    if group is not None:
        mine = [flag for define in own for flag in _names_of(define)]
        about = help.text(about, group, values, mine)
        return CommandLine(Spec(), values, {}, frozenset(), (), about)
    if len(rest) > len(words):
        raise ValueError(f"{rest[len(words)]!r} is not a flag; write --name=value")
    if len(rest) < len(words):
        raise ValueError(f"name {words[len(rest)]} on the command line; --help shows how")
    for name in without:
        if values[name].present:
            raise ValueError(f"--{name} is set by another flag of this program; leave it out")
    typed = changes_of(values)
    by_hand = frozenset(name for name in hand if hand[name].present)
    return CommandLine(_put(stored, typed), values, typed, by_hand, tuple(rest), None)


def changes_in(text: Sequence[str], *, trusted: bool = True) -> dict[str, Any]:
    """Returns the fields that some flags set, by path; for a part of a command line or a file.

    Args:
      text: flags.
      trusted: whether an algorithm that is a function somewhere may be imported.

    Raises:
      ValueError: as `parse`.
    """
    known = dict(ALGORITHMS)
    values = _define(known, ())
    _parse(values, ["", *text], known_only=True)
    if values["algorithm"].present and values.algorithm not in known:
        changes = changes_of(values, ["algorithm"])
        check_trusted(Spec().put(changes), {}, source="a file", trust_code=trusted)
        known[values.algorithm] = factories.find_factory(values.algorithm)
    values = _define(known, ())
    if rest := _parse(values, ["", *text]):
        raise ValueError(f"{rest[0]!r} is not a flag; write --name=value")
    return changes_of(values)


def _put(spec: Spec, typed: Mapping[str, Any]) -> Spec:
    """The specification with what was typed; another algorithm starts without arguments."""
    changes = dict(typed)
    if changes.get("method.name", spec.method.name) == spec.method.name:
        own = {**spec.method.params, **changes.get("method.params", {})}
        changes |= {"method.params": own}
    elif "method.params" not in changes:
        changes["method.params"] = {}
    return spec.put(changes)


def _read_stored(values: flags.FlagValues) -> tuple[Spec, Path | None]:
    """The specification that a command line starts from, and its file if it has one."""
    if "spec" not in values:
        return Spec(), None
    where = values.output_dir
    path = spec_file(Path(where) if where else None) if values.resume else None
    path = Path(values.spec) if values.spec and path is None else path
    return (Spec(), None) if path is None else (read_spec(path), path)


def _by_hand(argv: Sequence[str], own: Sequence[Definer]) -> flags.FlagValues:
    """The flags on the command line itself, those of flag files left out."""
    values = _define(dict(ALGORITHMS), own)
    _parse(values, _without_flag_files(argv), known_only=True)
    return values


def _without_flag_files(argv: Sequence[str]) -> list[str]:
    return _split_flag_files(argv)[0]


def _split_flag_files(argv: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Returns the words that name no flag file, and the flag files."""
    left, files, words = [], [], iter(argv)
    for word in words:
        if re.fullmatch(r"--?flagfile", word):
            files.append(next(words, ""))
        elif match := re.match(r"--?flagfile=", word):
            files.append(word[match.end() :])
        else:
            left.append(word)
    return left, [Path(file).expanduser() for file in files]


def _check_flag_files(argv: Sequence[str]) -> None:
    """Raises ValueError for a flag that ends in a blank, which absl drops when it reads a file."""
    for path in _split_flag_files(argv)[1]:
        if not path.is_file():
            continue  # absl names it
        lines = path.read_bytes().decode(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            if line.startswith("-") and line != line.rstrip():
                raise ValueError(
                    f"{path}: line {number} ends in a blank, which would be dropped; remove it, or "
                    f"give {line.split('=')[0]} on the command line"
                )
        _check_flag_files(lines)


def _define(known: Mapping[str, Callable], own: Sequence[Definer]) -> flags.FlagValues:
    values = flags.FlagValues()
    define_fields(values)
    for define in own:
        define(values)
    define_own(known, values)
    return values


def _parse(values: flags.FlagValues, argv: Sequence[str], *, known_only: bool = False) -> list:
    try:
        return values(list(argv), known_only=known_only)[1:]
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_unknown(error.flagname, list(values))) from None
    except flags.Error as error:
        raise ValueError(str(error)) from None
    except UnicodeDecodeError:
        files = [given for given in argv if "flagfile" in given]
        raise ValueError(
            f"{' '.join(files)} is not a text; give a file with one flag a line"
        ) from None


def _unknown(name: str, known: Sequence[str]) -> str:
    """The message for a flag that does not exist."""
    parts = [flag for flag in known if name in flag.split("_")]
    close = difflib.get_close_matches(name, known, 3) or parts
    hint = f"did you mean {' or '.join(f'--{flag}' for flag in close[:3])}? " if close else ""
    return f"--{name} is not a flag; {hint}--help lists the flags"


def _asks_help(given: str) -> bool:
    return help.requested_group(["", given]) is not None


def _names_of(define: Definer) -> list[str]:
    values = flags.FlagValues()
    before = set(values)
    define(values)
    return [name for name in values if name not in before]
