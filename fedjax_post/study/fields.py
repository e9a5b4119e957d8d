"""Fields of a specification: what each one means, its default, and the check of its value."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

Section = TypeVar("Section")
_MEANING = "meaning"


class Meaning(NamedTuple):
    """What a field says of itself."""

    help: str  # a sentence, with the unit; a flag's help too
    choices: tuple[str, ...] = ()  # the texts that it may be; () for any value
    low: float | None = None  # the least value
    above: float | None = None  # every value is greater
    high: float | None = None  # the greatest value
    below: float | None = None  # every value is less
    flag: str | None = None  # the flag's name, where it is not the field's
    common: bool = False  # whether most people set it
    free: bool = False  # whether it may differ between the sessions of one run


def setting(default: Any, help: str, **told: Any) -> Any:
    """Returns a field of a frozen dataclass with its meaning.

    Args:
      default: the value where none is given; None stands for a choice that depends on others,
        which `help` gives in parentheses.
      help: what it is, with the unit.
      **told: further fields of `Meaning`.
    """
    meaning = {_MEANING: Meaning(help, **told)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=meaning)
    return dataclasses.field(default=default, metadata=meaning)


def meaning_of(field: dataclasses.Field) -> Meaning | None:
    """Returns what a field says of itself; None for a section of further fields."""
    return field.metadata.get(_MEANING)


@cache
def kinds_of(section: type) -> Mapping[str, Any]:
    """Returns the annotated type of each field of a section."""
    return typing.get_type_hints(section)


def check(section: Any) -> None:
    """Checks every field of a frozen section, and brings values to their annotated type.

    Whole numbers become floats and lists become tuples where the annotation says so.

    Raises:
      ValueError: naming the first field that is wrong, its value and what it may be.
    """
    for field in dataclasses.fields(section):
        meaning = meaning_of(field)
        if meaning is None:
            continue
        given = getattr(section, field.name)
        value = _conformed(given, kinds_of(section.__class__)[field.name], field.name)
        _check_range(value, meaning, field.name)
        object.__setattr__(section, field.name, value)


def replaced(section: Section, **changes: Any) -> Section:
    """Returns a section, or a whole specification, with some fields changed."""
    return dataclasses.replace(section, **changes)  # type: ignore[type-var]


def default_of(field: dataclasses.Field) -> Any:
    """Returns the value that a field has where none is given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def unknown(name: str, known: Iterable[str], *, what: str = "field") -> str:
    """Returns what to say of a name that does not exist: the nearest one, or all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"{name} is no {what}; {meant}"


def _conformed(value: Any, kind: Any, name: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _conformed(value, kind, name)
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_conformed(item, arguments[0], name) for item in value)
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _conformed(item, arguments[1], name) for key, item in value.items()}
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"{name}={value!r} must be {_spoken(kind)}, not {type(value).__name__}")


def _check_range(value: Any, meaning: Meaning, name: str) -> None:
    if meaning.choices and value is not None and value not in meaning.choices:
        raise ValueError(f"{name}={unknown(str(value), meaning.choices, what='choice')}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        if not math.isfinite(number):
            raise ValueError(f"{name}={number} must be a finite number")
        for limit, holds, words in (
            (meaning.low, lambda x, low: x >= low, "at least"),
            (meaning.above, lambda x, low: x > low, "greater than"),
            (meaning.high, lambda x, high: x <= high, "at most"),
            (meaning.below, lambda x, high: x < high, "less than"),
        ):
            if limit is not None and not holds(number, limit):
                raise ValueError(f"{name}={number} must be {words} {limit:g}")


def _spoken(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    words = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
    if origin is tuple:
        return f"a list, each item {_spoken(arguments[0])}"
    if origin is not None:
        return "a mapping from texts"
    return words.get(kind, str(kind))
