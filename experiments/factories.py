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
from fedjax_post.core.access import Access

Factories = Mapping[str, Callable]

# general flag -> the arguments that it feeds; other general flags suit every algorithm
FEEDS = {
    "client_optimizer": ("client_tx",),
    "client_lr": ("client_tx", "learning_rate"),
    "client_schedule": ("client_tx", "learning_rate"),
    "weight_decay": ("client_tx",),
    "grad_clip": ("client_tx",),
    "server_optimizer": ("server_tx",),
    "server_lr": ("server_tx", "server_lr"),
    "client_weight": ("weigh_fn",),
    "embeddings": ("embeddings",),
}
# arguments that the program gives, so that no flag is made of them
PROVIDED = (
    *("loss_fn", "client_tx", "learning_rate", "participation"),
    *("server_tx", "server_lr", "weigh_fn"),
    *("candidates", "embeddings", "separator", "dropped", "vocab_size"),
)
# what factories are given so that they tell their access: nothing is trained with it
_TOY: Mapping[str, Any] = {
    "loss_fn": lambda params, model, batch, key: (0.0, {}),
    "client_tx": optax.sgd(0.1),
    "learning_rate": 0.1,
    "participation": 1.0,
    "local_pattern": "^head$",
    "candidates": np.arange(2),
    "separator": np.int32(0),
    "dropped": np.arange(1),
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
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--{flag}={name} cannot be loaded: {error}") from error
    if not hasattr(found, attribute):
        raise ValueError(f"--{flag}={name} cannot be loaded: {module} has no {attribute!r}")
    return getattr(found, attribute)


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
    taken = inspect.signature(inner).parameters
    own = {name: p for name, p in taken.items() if name not in ("loss_fn", "client_tx")}
    ditto(ALGORITHMS["fed_avg"](None, optax.sgd(1.0)), None, client_tx=optax.sgd(1.0), **fixed)

    def factory(loss_fn, client_tx, **given):
        given |= {"client_tx": client_tx} if "client_tx" in taken else {}
        return ditto(inner(loss_fn, **given), loss_fn, client_tx=client_tx, **fixed)

    both = [p for name, p in inspect.signature(factory).parameters.items() if name != "given"]
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
    factory.__signature__ = inspect.Signature([*both, *keywords])  # type: ignore[attr-defined]
    factory.__doc__ = inner.__doc__
    return factory


def declared() -> dict[str, Mapping[str, Access]]:
    """Returns the access that every registered algorithm declares, by model role."""
    return {name: _toy_of(factory).access for name, factory in ALGORITHMS.items()}


def access_of(name: str) -> Mapping[str, Access]:
    """Returns the access that an algorithm declares, by model role; see `find_factory`."""
    return _toy_of(find_factory(name)).access


def own_parameters(factory: Callable) -> dict[str, inspect.Parameter]:
    """Returns a factory's hyper-parameters: the arguments that the program does not give."""
    parameters = inspect.signature(factory).parameters
    return {name: value for name, value in parameters.items() if name not in PROVIDED}


def define_own(factories: Factories, values: flags.FlagValues) -> None:
    """Defines a flag for every hyper-parameter of every factory, all without a default."""
    kinds: dict[str, type] = {}
    told: dict[str, list[str]] = {}
    for algorithm, factory in factories.items():
        for name, parameter in own_parameters(factory).items():
            kind = parameter.annotation
            kind = kind if kind in _DEFINERS else type(parameter.default)
            if kind not in _DEFINERS or name in values:
                continue
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
    return bool(set(FEEDS.get(flag, (flag,))) & set(inspect.signature(factory).parameters))


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
    """Returns the factory's algorithm, made of what is offered and of its own flags."""
    names = inspect.signature(factory).parameters
    arguments = {name: value for name, value in offered.items() if name in names}
    own = {name: options[name].value for name in own_parameters(factory) if name in options}
    return factory(**arguments, **own)


def _toy_of(factory: Callable) -> Any:
    """An algorithm made of toy arguments where it has no defaults."""
    taken = inspect.signature(factory).parameters
    missing = [name for name, p in taken.items() if p.default is p.empty]
    usual = lambda name: None if name in PROVIDED else 0.1
    return factory(**{name: _TOY.get(name, usual(name)) for name in missing})
