"""Pages made from the code: the names at every room's face, and the flags by group."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

from absl import flags as absl_flags
from catalogue import prose

import fedjax_post
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.experiments.flags.define import FLAGS, GROUPS, define_own
from fedjax_post.experiments.flags.help import TITLES

_FIRST = ("study", "core", "adapters", "data", "objectives", "privacy")  # the rest by name
_OPTIONS = {"class": "   :members:", "function": "", "data": "   :no-value:"}
_NOT_ROOMS = ("algorithms", "experiments")  # with pages of their own


def rooms() -> list[str]:
    """Returns the names of the rooms, those that most users meet first."""
    folder = Path(fedjax_post.__file__).parent
    found = [module.name for module in pkgutil.iter_modules([str(folder)]) if module.ispkg]
    rest = sorted(set(found) - {*_FIRST, *_NOT_ROOMS})
    return [*_FIRST, *rest]


def pages(guide: str) -> dict[str, str]:
    """Returns Markdown by path.

    Args:
      guide: text of the page that describes the rooms; each section goes before its names.

    Raises:
      ValueError: for a room that the guide does not describe.
    """
    told = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", guide, re.MULTILINE | re.DOTALL))
    missing = {*rooms(), "fedjax_post"} - told.keys()
    if missing:
        raise ValueError(f"docs/rooms.md has no section on {', '.join(sorted(missing))}")
    found = {f"reference/{room}.md": _room(room, told[room]) for room in rooms()}
    found["reference/fedjax_post.md"] = _room("fedjax_post", told["fedjax_post"])
    return {"reference/index.md": _index(told), "reference/flags.md": _flags(), **found}


def _index(told: dict[str, str]) -> str:
    names = ["fedjax_post", *rooms()]
    first = lambda name: re.split(r"(?<=\.)\s", told[name].strip())[0].replace("\n", " ")
    rows = [f"| [`{name}`]({name}.md) | {first(name)} |" for name in names]
    lines = [
        "# Reference",
        "",
        "The public names of every room, and the flags of the programs.",
        "",
    ]
    toctree = ["```{toctree}", ":hidden:", "", *names, "flags", "```", ""]
    flags = "| [flags](flags.md) | The flags of `python -m experiments.train`, by group. |"
    return "\n".join(
        [*lines, "| room | what it is for |", "| --- | --- |", *rows, flags, "", *toctree]
    )


def _room(room: str, guide: str) -> str:
    path = "fedjax_post" if room == "fedjax_post" else f"fedjax_post.{room}"
    module = importlib.import_module(path)
    names = sorted(public(module), key=str.lower)
    # links of the guide are relative to docs/
    moved = re.sub(r"\]\((?!http|#)", "](../docs/", guide.strip())
    lines = [f"# `{path}`", "", moved.replace("](../docs/../", "](../"), ""]
    if not names:
        lines += ["| module | what it has |", "| --- | --- |", *_modules(module), ""]
        return "\n".join(lines)
    shown = {name: owner(name, getattr(module, name), room) for name in names}
    if elsewhere := [f"[`{name}`]({page}.md)" for name, page in shown.items() if page != room]:
        lines += [f"Also here, described where they belong: {', '.join(elsewhere)}.", ""]
    lines += ["## Names", "", "```{eval-rst}"]
    for name in (name for name, page in shown.items() if page == room):
        thing = getattr(module, name)
        kind = "class" if inspect.isclass(thing) else "function" if callable(thing) else "data"
        lines += [f".. auto{kind}:: {path}.{name}"]
        lines += [_OPTIONS[kind], ""]
    return "\n".join([*lines, "```", ""])


def owner(name: str, thing, room: str) -> str:
    """Returns the room on whose page a name is described: its own, if that offers it."""
    parts = getattr(thing, "__module__", "").split(".")
    own = parts[1] if parts[0] == "fedjax_post" and len(parts) > 1 else room
    if own not in rooms() or name not in public(importlib.import_module(f"fedjax_post.{own}")):
        return room
    return own


def public(module) -> list[str]:
    """Returns the names that a room's face offers, modules left out."""
    chosen = getattr(module, "__all__", None) or [name for name in vars(module) if name[0] != "_"]
    return [name for name in chosen if not inspect.ismodule(getattr(module, name))]


def _modules(package) -> list[str]:
    rows = []
    for found in pkgutil.iter_modules(package.__path__):
        path = f"{package.__name__}.{found.name}"
        doc = inspect.getdoc(importlib.import_module(path)) or ""
        rows.append(f"| `{path}` | {prose(doc.splitlines()[0])} |")
    return rows


def _flags() -> str:
    lines = [
        "# Flags",
        "",
        "The flags of `python -m experiments.train`, and of the programs that start such runs.",
        "Each stands for a field of [`study.Spec`](study.md); `--help=GROUP` prints a group.",
        "[Experiments](../docs/experiments.md) describes them by concern.",
        "",
    ]
    for group in GROUPS:
        chosen = [flag for flag in FLAGS.values() if flag.group == group]
        lines += [f"## {group}", "", TITLES[group], ""]
        for flag in chosen:
            choices = "".join(f"`{choice}` or " for choice in flag.choices).removesuffix(" or ")
            about = f"{choices}: {prose(flag.help)}" if choices else prose(flag.help)
            lines.append(f"- `--{flag.name}{_default(flag.default)}`, `{flag.path}`: {about}")
        lines.append("")
    lines += ["## algorithm", "", TITLES["algorithm"], ""]
    values = absl_flags.FlagValues()
    define_own(ALGORITHMS, values)
    own = sorted(values.flags_by_module_dict()["algorithm"], key=lambda flag: flag.name)
    lines += [f"- `--{flag.name}`: {prose(flag.help)}" for flag in own]
    return "\n".join([*lines, ""])


def _default(value) -> str:
    if value is None or value in ("", (), {}):
        return ""
    return f"={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
