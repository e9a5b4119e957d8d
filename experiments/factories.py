"""What the algorithms' signatures say: which flags each takes, and what a factory is given."""

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax
from absl import flags

from algorithms import ALGORITHMS, ditto
from algorithms.references import central
from experiments.calls import parse
from fedjax_post.core import world
from fedjax_post.core.access import Access
from fedjax_post.core.checked import check_parts

Factories = Mapping[str, Callable]

# general flag -> the annotations that it feeds; other general flags suit every algorithm
FEEDS = {
    "client_optimizer": ("ClientTx",),
    "client_lr": ("ClientTx", "LearningRate"),
    "client_schedule": ("ClientTx", "LearningRate"),
    "weight_decay": ("ClientTx",),
    "grad_clip": ("ClientTx",),
    "server_optimizer": ("ServerTx",),
    "server_lr": ("ServerTx", "ServerLr"),
    "client_weight": ("WeighFn",),
    "embeddings": ("Embeddings",),
}
# what factories are given so that they report their access: nothing is trained with it
_TOY: Mapping[str, Any] = {
    "LossFn": lambda params, model, batch, key: (0.0, {}),
    "ClientTx": optax.sgd(0.1),
    "LearningRate": 0.1,
    "Participation": 1.0,
    "Candidates": np.arange(2),
    "Separator": np.int32(0),
    "Specials": np.arange(1),
}
_DEFINERS = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def find_factory(name: str) -> Callable:
    """Returns the factory of a registered name or of `package.module:factory`.

    Raises:
      ValueError: naming the algorithms that there are.
    """
    if "(" in name:
        return wrapped(name)
    if ":" in name:
        return load_own(name, flag="algorithm")
    if name not in ALGORITHMS:
        close = difflib.get_close_matches(name, ALGORITHMS, 1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(ALGORITHMS)}"
        raise ValueError(
            f"--algorithm={name} is unknown; {meant} --help lists all, and your own is "
            "package.module:factory"
        )
    return ALGORITHMS[name]


def load_own(name: str, *, flag: str) -> Callable:
    """Returns the function of the user's that a flag names as `package.module:function`.

    Raises:
      ValueError: naming the flag, if there is no such function.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # an installed command does not look where it is called
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--{flag}={name} cannot be loaded: {error}") from error


def wrapped(text: str) -> Callable:
    """Returns the factory of a wrapper over an algorithm: `ditto(fed_adam, mu=0.5)`.

    One of your own is wrapped as `ditto('package.module:factory')`.

    The wrapper's hyper-parameters stand in the text, the algorithm's are flags as ever.

    Raises:
      ValueError: naming the wrappers and what they take.
    """
    inner = {name: lambda name=name: ALGORITHMS[name] for name in ALGORITHMS}
    try:
        found = parse(text, {"ditto": _ditto_over, **inner})
    except ValueError as error:
        raise ValueError(f"--algorithm={text}: {error}") from error
    if len(found) > 1:
        raise ValueError(f"--algorithm={text} names {len(found)} algorithms; give one")
    return found[0]


def _ditto_over(inner: Callable | str, **fixed: Any) -> Callable:
    inner = find_factory(inner) if isinstance(inner, str) else inner
    needed = world.needs(inner)
    ditto(central(None, optax.sgd(1.0)), None, client_tx=optax.sgd(1.0), **fixed)

    def factory(loss_fn: world.LossFn, client_tx: world.ClientTx, **others: Any):
        shared = {"LossFn": loss_fn, "ClientTx": client_tx}
        both = {name: shared[mark.name] for name, mark in needed.items() if mark.name in shared}
        return ditto(inner(**both, **others), loss_fn, client_tx=client_tx, **fixed)

    given = [*world.parameters_of(factory).values()][:2]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in world.parameters_of(inner).items()
        if name not in needed or needed[name].name not in ("LossFn", "ClientTx")
    ]
    factory.__signature__ = inspect.Signature([*given, *own])  # type: ignore[attr-defined]
    factory.__doc__ = inner.__doc__
    return factory


def declared() -> dict[str, Mapping[str, Access]]:
    """Returns the access that every registered algorithm declares, by model role."""
    return {name: _toy_of(factory).access for name, factory in ALGORITHMS.items()}


def ranked() -> list[str]:
    """Returns the registered algorithms that heed the rank of each client."""
    return [name for name, factory in ALGORITHMS.items() if _toy_of(factory).ranked]


def own_parameters(factory: Callable) -> dict[str, inspect.Parameter]:
    """Returns a factory's hyper-parameters: the arguments that the program does not give."""
    needed = world.needs(factory)
    parameters = world.parameters_of(factory)
    return {name: value for name, value in parameters.items() if name not in needed}


def define_own(factories: Factories, values: flags.FlagValues) -> None:
    """Defines a flag for every hyper-parameter of every factory, all without a default.

    Raises:
      ValueError: for one that has the name of another flag, or that no flag can give.
    """
    kinds: dict[str, type] = {}
    told: dict[str, list[str]] = {}
    for algorithm, factory in factories.items():
        for name, parameter in own_parameters(factory).items():
            kind = _kind_of(algorithm, name, parameter)
            if kind is None:
                continue
            if name in values:
                raise ValueError(
                    f"--algorithm={algorithm}: its argument {name} would be the flag --{name}, "
                    f"which the program has already; rename it, such as own_{name}, or annotate "
                    f"it as what it is to be given: {_annotations()}"
                )
            kinds[name] = kind
            doc = re.search(rf"^\s+{name}: (.*)$", inspect.getdoc(factory) or "", re.MULTILINE)
            default = "" if parameter.default is parameter.empty else f" {parameter.default}"
            told.setdefault(name, [doc.group(1)] if doc else [""]).append(f"{algorithm}{default}")
    for name, kind in kinds.items():
        doc, *users = told[name]
        _DEFINERS[kind](name, None, f"{doc} [{', '.join(users)}]", flag_values=values)


def takers(flag: str, factories: Factories) -> list[str]:
    """Returns the algorithms that take a flag."""
    return [name for name, factory in factories.items() if takes(factory, flag)]


def takes(factory: Callable, flag: str) -> bool:
    """Returns whether a factory takes a flag."""
    if flag in FEEDS:
        return any(needs(factory, annotation) for annotation in FEEDS[flag])
    return flag in own_parameters(factory)


def needs(factory: Callable, annotation: str) -> bool:
    """Returns whether a factory has an argument with an annotation of `core.world`."""
    return annotation in {mark.name for mark in world.needs(factory).values()}


def check_taken(options: flags.FlagValues, factories: Factories) -> None:
    """Refuses flags that the chosen algorithm has no use for, and fills in its defaults.

    Raises:
      ValueError: naming the flag and the algorithms that take it, or a flag that is missing.
    """
    owned = {name for factory in factories.values() for name in own_parameters(factory)}
    for flag in [*FEEDS, *sorted(owned & set(options))]:
        known, value = takers(flag, factories), options[flag].value
        if options.baseline != "none" and takes(central, flag):
            continue
        if value is not None and options.algorithm not in known:
            raise ValueError(
                f"--{flag}={value}: --algorithm={options.algorithm} does not take it; "
                f"it belongs to {', '.join(known)}"
            )
    for name, parameter in own_parameters(factories[options.algorithm]).items():
        if name not in options:
            continue
        if options[name].value is None and parameter.default is parameter.empty:
            raise ValueError(f"--algorithm={options.algorithm} needs --{name}; give it a value")
        if options[name].value is None:
            options[name].value = parameter.default


def build(factory: Callable, options: flags.FlagValues, offered: Mapping[str, Any]) -> Any:
    """Returns the factory's algorithm, made of what is offered and of its own flags.

    Args:
      factory: what makes it.
      options: parsed flags.
      offered: what there is, by the name of its annotation in `core.world`.

    Raises:
      TypeError: if it returns something else.
    """
    given = world.needs(factory).items()
    arguments = {name: offered[mark.name] for name, mark in given if mark.name in offered}
    own = {name: options[name].value for name in own_parameters(factory) if name in options}
    return check_parts(factory(**arguments, **own))


def _kind_of(algorithm: str, name: str, parameter: inspect.Parameter) -> type | None:
    """The type of a hyper-parameter's flag; None where it keeps its default, which no flag can."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return None
    kind = parameter.annotation
    kind = kind if kind in _DEFINERS else type(parameter.default)
    if kind in _DEFINERS:
        return kind
    if parameter.default is not parameter.empty:
        return None
    raise ValueError(
        f"--algorithm={algorithm}: nothing says what its argument {name} is given; annotate it, "
        f"as in `{name}: float` for a flag, or in `loss_fn: LossFn` and `client_tx: ClientTx` for "
        f"what the program gives, with what fedjax_post.core.world has: {_annotations()}"
    )


def _annotations() -> str:
    return ", ".join(mark.name for mark in map(world.given_by, world.ANNOTATIONS) if mark)


def _toy_of(factory: Callable) -> Any:
    """An algorithm made of toy arguments where it has no defaults."""
    needed = world.needs(factory)
    usual = lambda name: _TOY[needed[name].name] if name in needed else 0.1
    taken = world.parameters_of(factory).items()
    return factory(**{name: usual(name) for name, p in taken if p.default is p.empty})
