"""Flags made from the fields of an experiment and from the arguments of the algorithms."""

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from absl import flags

from fedjax_post.study.factories import annotations, own_parameters
from fedjax_post.study.fields import default_of, kinds_of, meaning_of
from fedjax_post.study.spec import PATHS, SECTIONS, Spec

OWN = "method.params"  # the only field with a flag for each of its keys
_DEFINERS: Mapping[type, Callable] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


class Flag(NamedTuple):
    """A flag that stands for a field of an experiment."""

    name: str
    path: str
    group: str  # the section, or "experiment" for a field outside sections
    kind: Any  # annotated type of the field, without None
    default: Any
    help: str
    choices: tuple[str, ...]
    common: bool


def _flags() -> dict[str, Flag]:
    found = {}
    for path, field in PATHS.items():
        if path == OWN:
            continue
        section, _, name = path.partition(".")
        meaning = meaning_of(field)
        assert meaning is not None  # of a field that has a path
        kind = kinds_of(SECTIONS[section] if name else Spec)[field.name]
        flag = Flag(
            meaning.flag or field.name,
            path,
            section if name else "experiment",
            _without_none(kind),
            default_of(field),
            meaning.help,
            meaning.choices,
            meaning.common,
        )
        found[flag.name] = flag
    return found


def _without_none(kind: Any) -> Any:
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    return options[0] if len(options) == 1 and typing.get_origin(kind) is not tuple else kind


# name -> flag, for all fields except the algorithms' own arguments
FLAGS: Mapping[str, Flag] = _flags()
GROUPS = ("experiment", *SECTIONS)


def define_fields(values: flags.FlagValues) -> None:
    """Defines a flag for every field; its value is None until it is given."""
    for flag in FLAGS.values():
        define = _DEFINERS.get(flag.kind, flags.DEFINE_string)
        if typing.get_origin(flag.kind) is not None:
            define = flags.DEFINE_list
        define(flag.name, None, flag.help, flag_values=values, module_name=flag.group)


def define_own(factories: Mapping[str, Callable], values: flags.FlagValues) -> None:
    """Defines a flag for every hyper-parameter of every algorithm.

    Args:
      factories: by name; `study.factories.own_parameters` selects their hyper-parameters.
      values: where the flags are defined.
    """
    for name, (kind, about) in _own_of(factories).items():
        _DEFINERS[kind](name, None, about, flag_values=values, module_name="algorithm")


def changes_of(values: flags.FlagValues, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Returns the fields for which flags were given, by path.

    Args:
      values: parsed flags.
      names: the flags to read; None: all that were given.

    Raises:
      ValueError: for a list whose items are not of the field's type, naming the flag.
    """
    given = [name for name in values if values[name].present] if names is None else names
    changes, own = {}, {}
    for name in given:
        if name in FLAGS:
            changes[FLAGS[name].path] = _value(FLAGS[name], values[name].value)
        elif values.flags_by_module_dict().get("algorithm") and name in _algorithm_flags(values):
            own[name] = values[name].value
    return changes | ({OWN: own} if own else {})


def _algorithm_flags(values: flags.FlagValues) -> set[str]:
    return {flag.name for flag in values.flags_by_module_dict().get("algorithm", ())}


def _value(flag: Flag, value: Any) -> Any:
    """A parsed flag as the field's type."""
    origin, arguments = typing.get_origin(flag.kind), typing.get_args(flag.kind)
    if origin is tuple:
        try:
            return tuple(arguments[0](item) for item in value)
        except ValueError as error:
            raise ValueError(f"--{flag.name}={','.join(value)}: {error}") from None
    if origin is not None:
        pairs = [item.partition("=") for item in value]
        wrong = ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]
        if wrong:
            raise ValueError(
                f"--{flag.name} has {wrong[0]!r}, which is not key=value, such as 0=sad,1=happy"
            )
        return {key: text for key, _, text in pairs}
    if flag.choices and isinstance(value, str):  # tiers are in capitals, flags may be in any case
        return next((choice for choice in flag.choices if choice.lower() == value.lower()), value)
    return value


def _own_of(factories: Mapping[str, Callable]) -> dict[str, tuple[type, str]]:
    """The type and the help of every hyper-parameter that a flag can set."""
    kinds: dict[str, type] = {}
    texts: dict[str, list[str]] = {}
    for algorithm, factory in factories.items():
        for name, parameter in own_parameters(factory).items():
            kind = parameter.annotation
            kind = kind if kind in _DEFINERS else type(parameter.default)
            if kind not in _DEFINERS:
                continue
            if name in FLAGS:
                raise ValueError(
                    f"method={algorithm}: its argument {name} would become the flag --{name}, "
                    f"which the program has already; rename it, such as own_{name}, or annotate it "
                    f"with what the program passes to it: {annotations()}"
                )
            kinds[name] = kind
            doc = re.search(rf"^\s+{name}: (.*)$", inspect.getdoc(factory) or "", re.MULTILINE)
            default = "" if parameter.default is parameter.empty else f" {parameter.default}"
            texts.setdefault(name, [doc.group(1)] if doc else [""]).append(f"{algorithm}{default}")
    return {
        name: (kinds[name], f"{doc} [{', '.join(users)}]") for name, (doc, *users) in texts.items()
    }


def as_flags(spec: Spec) -> list[str]:
    """Returns the flags that describe a specification, defaults left out."""
    lines = []
    for flag in FLAGS.values():
        value = spec.at(flag.path)
        if value != flag.default:
            lines.append(f"--{flag.name}={_text(value)}")
    return [*lines, *(f"--{name}={_text(value)}" for name, value in spec.method.params.items())]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
