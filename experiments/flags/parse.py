"""A command line as an experiment, and as what concerns this process alone."""

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
    """What a person typed."""

    spec: Spec
    values: flags.FlagValues  # with the flags that are of no experiment
    typed: Mapping[str, Any]  # fields that were given, by path
    by_hand: frozenset[str]  # flags that stand on the command line itself, not in a file
    words: tuple[str, ...]  # what is no flag
    help: str | None  # what to print instead of running, if that was asked for


def define_launch(values: flags.FlagValues) -> None:
    """Defines the flags of a run that say nothing about the experiment."""
    give = {"flag_values": values}
    flags.DEFINE_string("output_dir", None, "a new folder (runs/<time>-<algorithm>)", **give)
    flags.DEFINE_bool("resume", False, "continue the run in --output_dir", **give)
    flags.DEFINE_string("spec", None, "begin from a specification, a file spec.json", **give)
    trust = "import functions that a run's folder or a file names"
    flags.DEFINE_bool("trust_code", False, trust, **give)
    flags.DEFINE_bool("dry_run", False, "print what the run will take, and exit", **give)
    twice = "with --resume: send calls again that may have been paid already"
    flags.DEFINE_bool("ask_again", False, twice, **give)


def parse(
    argv: Sequence[str],
    *,
    about: str,
    own: Sequence[Definer] = (),
    without: Sequence[str] = (),
    words: Sequence[str] = (),
) -> CommandLine:
    """Returns what a command line says.

    With `--resume`, fields that are left out come from the run in `--output_dir`; with `--spec`,
    from that file.

    Args:
      argv: program name and flags.
      about: the program's description, for `--help`.
      own: define the flags that are of no experiment.
      without: flags that the program sets by others of its own.
      words: what each word stands for that is no flag; all of them must be there.

    Raises:
      ValueError: for words that are no flags, unknown flags, wrong values, and code that a file
        names without being trusted.
      OSError: for files that cannot be read.
    """
    wanted = help.wanted(argv)
    argv = [given for given in argv if wanted is None or not _asks_help(given)]
    known = dict(ALGORITHMS)
    values = _defined(known, own)
    _parsed(values, argv, known_only=True)
    stored, source = (Spec(), None) if wanted is not None else _stored(values)
    first = changes_of(values, [name for name in FLAGS if values[name].present])
    hand = _by_hand(argv, own)
    if wanted is None:
        trust = "trust_code" in hand and hand.trust_code
        typed = changes_of(hand, [name for name in FLAGS if hand[name].present])
        source = source or "the flag file"
        check_trusted(_put(stored, first), typed, source=source, trust_code=trust)
    name = first.get("method.name", stored.method.name)
    if name not in known:
        known[name] = factories.find_factory(name)
    values = _defined(known, own)
    rest = _parsed(values, argv)
    if wanted is not None:
        mine = [flag for define in own for flag in _names_of(define)]
        about = help.text(about, wanted, values, mine)
        return CommandLine(Spec(), values, {}, frozenset(), (), about)
    if len(rest) > len(words):
        raise ValueError(f"{rest[len(words)]!r} is no flag; write --name=value")
    if len(rest) < len(words):
        raise ValueError(f"name {words[len(rest)]} on the command line; --help shows how")
    for name in without:
        if values[name].present:
            raise ValueError(f"--{name} is set by another flag of this program; leave it out")
    typed = changes_of(values)
    by_hand = frozenset(name for name in hand if hand[name].present)
    return CommandLine(_put(stored, typed), values, typed, by_hand, tuple(rest), None)


def changes_in(text: Sequence[str], *, trusted: bool = True) -> dict[str, Any]:
    """Returns the fields that some flags say, by path; for a part of a command line or a file.

    Args:
      text: flags.
      trusted: whether an algorithm that is a function somewhere may be imported.

    Raises:
      ValueError: as `parse`.
    """
    known = dict(ALGORITHMS)
    values = _defined(known, ())
    _parsed(values, ["", *text], known_only=True)
    if values["algorithm"].present and values.algorithm not in known:
        changes = changes_of(values, ["algorithm"])
        check_trusted(Spec().put(changes), {}, source="a file", trust_code=trusted)
        known[values.algorithm] = factories.find_factory(values.algorithm)
    values = _defined(known, ())
    if rest := _parsed(values, ["", *text]):
        raise ValueError(f"{rest[0]!r} is no flag; write --name=value")
    return changes_of(values)


def _put(spec: Spec, typed: Mapping[str, Any]) -> Spec:
    """The specification with what was typed; another algorithm begins with its own arguments."""
    changes = dict(typed)
    if changes.get("method.name", spec.method.name) == spec.method.name:
        own = {**spec.method.params, **changes.get("method.params", {})}
        changes |= {"method.params": own}
    elif "method.params" not in changes:
        changes["method.params"] = {}
    return spec.put(changes)


def _stored(values: flags.FlagValues) -> tuple[Spec, Path | None]:
    """The specification that a command line begins from, and its file if it has one."""
    if "spec" not in values:
        return Spec(), None
    where = values.output_dir
    path = spec_file(Path(where) if where else None) if values.resume else None
    path = Path(values.spec) if values.spec and path is None else path
    return (Spec(), None) if path is None else (read_spec(path), path)


def _by_hand(argv: Sequence[str], own: Sequence[Definer]) -> flags.FlagValues:
    """The flags that stand on the command line itself."""
    values = _defined(dict(ALGORITHMS), own)
    _parsed(values, _without_flag_files(argv), known_only=True)
    return values


def _without_flag_files(argv: Sequence[str]) -> list[str]:
    left, words = [], iter(argv)
    for word in words:
        if re.fullmatch(r"--?flagfile", word):
            next(words, None)  # its name
        elif not re.match(r"--?flagfile=", word):
            left.append(word)
    return left


def _defined(known: Mapping[str, Callable], own: Sequence[Definer]) -> flags.FlagValues:
    values = flags.FlagValues()
    define_fields(values)
    for define in own:
        define(values)
    define_own(known, values)
    return values


def _parsed(values: flags.FlagValues, argv: Sequence[str], *, known_only: bool = False) -> list:
    try:
        return values(list(argv), known_only=known_only)[1:]
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_unknown(error.flagname, list(values))) from None
    except flags.Error as error:
        raise ValueError(str(error)) from None
    except UnicodeDecodeError:
        files = [given for given in argv if "flagfile" in given]
        raise ValueError(f"{' '.join(files)} is no text; give a file with a flag a line") from None


def _unknown(name: str, known: Sequence[str]) -> str:
    """What to say of a flag that does not exist."""
    parts = [flag for flag in known if name in flag.split("_")]
    close = difflib.get_close_matches(name, known, 3) or parts
    meant = f"did you mean {' or '.join(f'--{flag}' for flag in close[:3])}? " if close else ""
    return f"--{name} is no flag; {meant}--help lists the flags"


def _asks_help(given: str) -> bool:
    return help.wanted(["", given]) is not None


def _names_of(define: Definer) -> list[str]:
    values = flags.FlagValues()
    before = set(values)
    define(values)
    return [name for name in values if name not in before]
