"""The text of `--help`: the flags that most runs use, those of a group, or all."""

import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

from fedjax_post.experiments.flags.define import FLAGS, GROUPS, Flag
from fedjax_post.study.fields import unknown
from fedjax_post.study.spec import SECTIONS

# group of flags -> what it is about
TITLES = {
    **{name: (kind.__doc__ or "").split("\n")[0] for name, kind in SECTIONS.items()},
    "experiment": "Flags of the whole experiment.",
    "algorithm": "Arguments of the algorithms.",
}
ALL = "full"


def requested_group(argv: Sequence[str]) -> str | None:
    """Returns the help that a command line asks for; None if it asks for none.

    "" is the short help; otherwise it is the name of a group of flags, or `ALL`.
    """
    for given in argv[1:]:
        name, _, value = given.lstrip("-").partition("=")
        if given.startswith("-") and name in ("help", "h", "helpfull", "helpshort"):
            return ALL if name == "helpfull" else value
    return None


def text(about: str, which: str, values: flags.FlagValues, own: Sequence[str] = ()) -> str:
    """Returns the help of a program.

    Args:
      about: what the program does, and its usual commands.
      which: as `requested_group` returns it.
      values: all flags of the program.
      own: names of the flags that only this program has; they come first.

    Raises:
      ValueError: for a group that does not exist.
    """
    groups = [*GROUPS, "algorithm"]
    lines = [about.strip(), ""]
    if own:
        lines += ["Flags of this program.", *(_absl_line(values[name]) for name in own), ""]
    if which == "":
        lines += ["Flags that most runs set, with their defaults.", ""]
        lines += [_line(flag) for flag in FLAGS.values() if flag.common]
        return "\n".join([*lines, "", f"More: --help=GROUP, of {', '.join(groups)}; --helpfull"])
    chosen = groups if which == ALL else [which]
    for group in chosen:
        if group not in groups:
            raise ValueError(f"--help={unknown(group, groups, what='group of flags')}")
        lines += [TITLES[group], ""]
        if group == "algorithm":
            found = values.flags_by_module_dict().get(group, ())
            lines += [_absl_line(flag) for flag in sorted(found, key=lambda flag: flag.name)]
        else:
            lines += [_line(flag) for flag in FLAGS.values() if flag.group == group]
        lines.append("")
    return "\n".join(lines).rstrip()


def _line(flag: Flag) -> str:
    choices = f"{'|'.join(flag.choices)}: " if flag.choices else ""
    return _entry(f"--{flag.name}{_shown(flag.default)}", f"{choices}{flag.help}")


def _absl_line(flag: flags.Flag) -> str:
    return _entry(f"--{flag.name}{_shown(flag.default)}", flag.help)


def _shown(default: Any) -> str:
    if default is None or default in ("", (), {}) or default is False:
        return ""
    return f"={','.join(map(str, default)) if isinstance(default, list | tuple) else default}"


def _entry(name: str, about: str) -> str:
    wrapped = textwrap.wrap(about, 66)
    head = f"  {name:<30}"
    if len(name) > 28:
        return "\n".join([f"  {name}", *(f"{'':32}{line}" for line in wrapped)])
    return "\n".join([f"{head}{wrapped[0]}", *(f"{'':32}{line}" for line in wrapped[1:])])
