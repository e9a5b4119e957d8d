"""A Sphinx extension: docstrings of this library, which are plain text, as reStructuredText.

They write code as `x`, equations with `|x|`, `c_k` and `*`, and examples as indented lines. Fields
of named tuples and of experiments are described where they are defined; they become a list.
"""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from fedjax_post.study.fields import default_of, meaning_of

_CODE = re.compile(r"(`[^`]+`)")
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Example|Examples|Yields):$")


def setup(app: Any) -> dict[str, bool]:
    """Registers the conversion; it runs before that of napoleon."""
    app.connect("autodoc-process-docstring", _convert, priority=100)
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}


def _convert(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    del app, name, options
    if what == "data":
        lines.clear()  # of its type, such as `dict`
        return
    if (
        isinstance(thing, type)
        and issubclass(thing, tuple)
        and (thing.__doc__ or "").startswith(f"{thing.__name__}(")
    ):
        lines.clear()  # made by `NamedTuple`, where there is no docstring
    lines[:] = [*to_rst(lines), *_fields(thing)]


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out fields, which are listed with their class: of named tuples, and with a default."""
    del app, what, name, skip, options
    is_field = type(member).__name__ == "_tuplegetter" or inspect.ismodule(member)
    return True if is_field else None


def _shorten(app: Any, what: str, name: str, thing: Any, options: Any, *given: Any) -> Any:
    """The signature of a named tuple or a section; a list of its fields follows."""
    del app, what, name, options
    if isinstance(thing, type) and (hasattr(thing, "_fields") or dataclasses.is_dataclass(thing)):
        optional = set(getattr(thing, "_field_defaults", ()))
        names = getattr(thing, "_fields", None) or [f.name for f in dataclasses.fields(thing)]
        return "(" + ", ".join(f"{n}=..." if n in optional else n for n in names) + ")", None
    return given


def to_rst(lines: list[str]) -> list[str]:
    """Returns lines of a docstring as reStructuredText, sections left to napoleon.

    Args:
      lines: of the docstring, its common indentation removed.
    """
    found: list[str] = []
    block, base = False, 0  # whether the lines are an indented block, and around it the indentation
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            found.append("")
            continue
        if _SECTION.match(line):
            found.append(line)
            block, base = False, 2
            continue
        if indent == 0:
            base = 0
        starts = indent >= base + 4 and found and found[-1] == "" and not _is_doctest(line)
        if starts and not block:
            found += [" " * base + "::", ""]
            block = True
        elif indent < base + 4:
            block = False
        found.append(line if block or _is_doctest(line) else escape(line))
    return found


def _is_doctest(line: str) -> bool:
    return line.lstrip().startswith((">>> ", "... "))


def escape(line: str) -> str:
    """Returns a line in which only code in backticks is marked up."""
    parts = _CODE.split(line)
    return "".join(
        f"`{part}`"
        if part.startswith("`") and len(part) > 1
        else re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part)
        for part in parts
    )


def _fields(thing: Any) -> list[str]:
    """The fields of a named tuple or of a section of an experiment, with their descriptions."""
    if not isinstance(thing, type):
        return []
    if "Attributes:" in (thing.__doc__ or ""):
        return []
    if dataclasses.is_dataclass(thing):
        told = [(f.name, _meaning(f)) for f in dataclasses.fields(thing)]
    elif hasattr(thing, "_fields"):
        told = _commented(thing)
    else:
        return []
    lines = ["", ""]
    for name, text in told:
        lines.append(f"- ``{name}``" + (f": {escape(text)}" if text else ""))
    return [*lines, ""]


def _meaning(field: dataclasses.Field) -> str:
    meaning = meaning_of(field)
    if meaning is None:
        return ""
    default = default_of(field)
    return meaning.help + ("" if default in (None, "", (), {}) else f"; default `{default}`")


def _commented(thing: type) -> list[tuple[str, str]]:
    """The fields of a named tuple, with the comments beside and above their definitions."""
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return [(name, "") for name in thing._fields]  # type: ignore[attr-defined]
    told, above = {}, []
    for line in source.splitlines():
        if comment := re.match(r"    # (.*)", line):
            above.append(comment[1])
            continue
        if field := re.match(r"    (\w+): [^#]*?(?:  # (.*))?$", line):
            told[field[1]] = field[2] or " ".join(above)
        above = []
    return [(name, told.get(name, "")) for name in thing._fields]  # type: ignore[attr-defined]
