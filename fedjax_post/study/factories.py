"""What the algorithms' signatures say: which flags each takes, and what a factory is given."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from algorithms import ALGORITHMS, ditto
from algorithms.references import central
from fedjax_post.core.access import Access
from fedjax_post.study.calls import parse
from fedjax_post.study.fields import unknown
from fedjax_post.study.files import load_code
from fedjax_post.study.learning import Method

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


def find_factory(name: str | Callable) -> Callable:
    """Returns the factory of a registered name or of `package.module:factory`.

    Raises:
      ValueError: naming the algorithms that there are.
    """
    if callable(name):
        return name
    if "(" in name:
        return wrapped(name)
    if ":" in name:
        return load_code(name, field="method")
    if name not in ALGORITHMS:
        told = unknown(name, ALGORITHMS, what="algorithm")
        raise ValueError(f"method={told} Your own algorithm is package.module:factory")
    return ALGORITHMS[name]


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
        raise ValueError(f"method={text}: {error}") from error
    if len(found) > 1:
        raise ValueError(f"method={text} names {len(found)} algorithms; give one")
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


def takers(flag: str, factories: Factories) -> list[str]:
    """Returns the algorithms that take a flag."""
    return [name for name, factory in factories.items() if takes(factory, flag)]


def takes(factory: Callable, flag: str) -> bool:
    """Returns whether a factory takes a flag."""
    return bool(set(FEEDS.get(flag, (flag,))) & set(inspect.signature(factory).parameters))


def check_taken(method: Method, factory: Callable) -> None:
    """Refuses fields and arguments that the chosen algorithm has no use for.

    Raises:
      ValueError: naming the field and the algorithms that take it.
    """
    names = {name for known in ALGORITHMS.values() for name in own_parameters(known)}
    given = {name: getattr(method, name) for name in FEEDS if hasattr(method, name)}
    for name, value in {**given, **method.params}.items():
        if method.baseline != "none" and takes(central, name):
            continue
        if value is None or takes(factory, name):
            continue
        if name not in given and name not in names:
            told = unknown(name, own_parameters(factory), what="argument")
            raise ValueError(f"method={spoken(method.name)}: {told}")
        raise ValueError(
            f"{name}={value}: method={spoken(method.name)} does not take it; it belongs to "
            f"{', '.join(takers(name, ALGORITHMS))}"
        )


def filled_params(method: Method, factory: Callable) -> dict[str, Any]:
    """Returns the value of every hyper-parameter of an algorithm.

    Raises:
      ValueError: for one that is missing and has no default.
    """
    params = dict(method.params)
    for name, parameter in own_parameters(factory).items():
        if name in params:
            continue
        if parameter.default is parameter.empty:
            raise ValueError(f"method={spoken(method.name)} needs {name}; give it a value")
        params[name] = parameter.default
    return params


def build(factory: Callable, method: Method, offered: Mapping[str, Any]) -> Any:
    """Returns the factory's algorithm, made of what is offered and of its own arguments."""
    names = inspect.signature(factory).parameters
    arguments = {name: value for name, value in offered.items() if name in names}
    own = {name: value for name, value in method.params.items() if name in names}
    return factory(**arguments, **own)


def spoken(value: Any) -> str:
    """Returns what a field is called in messages: its text, or a function's name."""
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _toy_of(factory: Callable) -> Any:
    """An algorithm made of toy arguments where it has no defaults."""
    taken = inspect.signature(factory).parameters
    missing = [name for name, p in taken.items() if p.default is p.empty]
    usual = lambda name: None if name in PROVIDED else 0.1
    return factory(**{name: _TOY.get(name, usual(name)) for name in missing})
