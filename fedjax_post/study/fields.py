"""Fields of a specification: their meanings, defaults and checks."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

Section = TypeVar("Section")
_MEANING = "meaning"


class Meaning(NamedTuple):
    """Description and limits of a field."""

    help: str  # one sentence, with the unit; also the help text of the field's flag
    choices: tuple[str, ...] = ()  # allowed texts, or items of a list; () for any
    low: float | None = None  # least value, inclusive
    above: float | None = None  # least value, exclusive
    high: float | None = None  # greatest value, inclusive
    below: float | None = None  # greatest value, exclusive
    flag: str | None = None  # name of the flag, where it differs from the field's
    common: bool = False  # whether most users set it
    free: bool = False  # whether it may differ between the sessions of one run


def setting(default: Any, help: str, **limits: Any) -> Any:
    """Returns a field of a frozen dataclass with its meaning.

    Args:
      default: value where none is given; None for a default that depends on other fields, which
        `help` then names in parentheses at its end.
      help: what the field is, with its unit.
      **limits: further fields of `Meaning`.
    """
    meaning = {_MEANING: Meaning(help, **limits)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=meaning)
    return dataclasses.field(default=default, metadata=meaning)


def meaning_of(field: dataclasses.Field) -> Meaning | None:
    """Returns the meaning of a field; None for a field that holds a section."""
    return field.metadata.get(_MEANING)


@cache
def kinds_of(section: type) -> Mapping[str, Any]:
    """Returns the annotated type of each field of a section."""
    return typing.get_type_hints(section)


def check(section: Any) -> None:
    """Checks every field of a frozen section, and converts values to their annotated types.

    Integers become floats and lists become tuples where the annotation asks for it.

    Raises:
      ValueError: naming the first invalid field, its value and what is allowed.
    """
    for field in dataclasses.fields(section):
        meaning = meaning_of(field)
        if meaning is None:
            continue
        given = getattr(section, field.name)
        value = conform(given, kinds_of(section.__class__)[field.name], field.name)
        _check_range(value, meaning, field.name)
        object.__setattr__(section, field.name, value)


def replaced(section: Section, **changes: Any) -> Section:
    """Returns a section, or a whole specification, with some fields changed."""
    return dataclasses.replace(section, **changes)  # type: ignore[type-var]


def default_of(field: dataclasses.Field) -> Any:
    """Returns the default value of a field."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def unknown(name: str, known: Iterable[str], *, what: str = "field") -> str:
    """Returns a message about an unknown name that suggests the nearest one, or lists all.

    Args:
      name: the unknown name.
      known: the names that exist.
      what: what the names stand for.

    >>> unknown("fedavg", ["fed_avg", "scaffold"], what="algorithm")
    'fedavg is no algorithm; did you mean fed_avg?'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"{name} is no {what}; {meant}"


def conform(value: Any, kind: Any, name: str) -> Any:
    """Returns a value, converted to an annotated type as `check` does.

    Args:
      value: as given.
      kind: the annotation, of texts, numbers, lists and mappings.
      name: of the value, for the error.

    Raises:
      ValueError: with the name, the value and the type.
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return conform(value, kind, name)
    if origin in (tuple, Sequence):
        if isinstance(value, list | tuple):
            return tuple(conform(item, arguments[0], name) for item in value)
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: conform(item, arguments[1], name) for key, item in value.items()}
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(f"{name}={value!r} must be {_kind_name(kind)}, not {type(value).__name__}")


def _check_range(value: Any, meaning: Meaning, name: str) -> None:
    items = value if isinstance(value, tuple) else () if value is None else (value,)
    for item in items:
        if meaning.choices and item not in meaning.choices:
            raise ValueError(f"{name}={unknown(str(item), meaning.choices, what='choice')}")
    for number in items:
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


def _kind_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    words = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}
    if origin in (tuple, Sequence):
        return f"a list, each item {_kind_name(arguments[0])}"
    if origin is not None:
        return "a mapping from texts"
    return words.get(kind, str(kind))
