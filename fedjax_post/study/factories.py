"""What the algorithms' signatures say: which flags each takes, and what a factory is given."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from fedjax_post.algorithms import ALGORITHMS, ditto
from fedjax_post.algorithms.references import central
from fedjax_post.core import world
from fedjax_post.core.access import Access
from fedjax_post.core.checked import check_parts
from fedjax_post.study.calls import parse
from fedjax_post.study.fields import unknown
from fedjax_post.study.files import load_code
from fedjax_post.study.learning import Method
from fedjax_post.study.spec import Spec

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
    needed = world.needs(inner)
    toy = _TOY["LossFn"]  # a wrong argument is refused before the algorithm is known
    ditto(central(toy, optax.sgd(1.0)), toy, client_tx=optax.sgd(1.0), **fixed)

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


def access_of(name: str | Callable) -> Mapping[str, Access]:
    """Returns the access that an algorithm declares, by model role; see `find_factory`."""
    return _toy_of(find_factory(name)).access


def ranked() -> list[str]:
    """Returns the registered algorithms that heed the rank of each client."""
    return [name for name, factory in ALGORITHMS.items() if _toy_of(factory).ranked]


def own_parameters(factory: Callable) -> dict[str, inspect.Parameter]:
    """Returns a factory's hyper-parameters: the arguments that the program does not give."""
    needed = world.needs(factory)
    parameters = world.parameters_of(factory)
    return {name: value for name, value in parameters.items() if name not in needed}


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


def check_taken(spec: Spec, factory: Callable) -> None:
    """Refuses fields and arguments that the chosen algorithm has no use for.

    Raises:
      ValueError: naming the field and the algorithms that take it.
    """
    method, name_of = spec.method, spoken(spec.method.name)
    given = {name: getattr(method, name) for name in FEEDS if hasattr(method, name)}
    given = {name: (name, value) for name, value in given.items()}
    given["embeddings"] = "model.embeddings", spec.model.embeddings
    own = {name: (f"method.params.{name}", value) for name, value in method.params.items()}
    for name, (field, value) in (given | own).items():
        if value is None or takes(factory, name):
            continue
        if method.baseline != "none" and takes(central, name):
            continue
        known = takers(name, ALGORITHMS)
        if not known:
            told = unknown(name, own_parameters(factory), what="argument")
            raise ValueError(f"method={name_of}: {told}")
        raise ValueError(
            f"{field}={value}: method={name_of} does not take it; it belongs to {', '.join(known)}"
        )


def filled_params(method: Method, factory: Callable) -> dict[str, Any]:
    """Returns the value of every hyper-parameter of an algorithm.

    Raises:
      ValueError: for one that is missing and has no default.
    """
    params = dict(method.params)
    for name, parameter in own_parameters(factory).items():
        if name in params or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            raise ValueError(
                f"method={spoken(method.name)}: nothing says what its argument {name} is given; "
                f"give `method.params` a value for it, or annotate it, as in `{name}: float` for a "
                "flag, or in `loss_fn: LossFn` and `client_tx: ClientTx` for what is given to it, "
                f"with what fedjax_post.core.world has: {annotations()}"
            )
        if isinstance(parameter.default, bool | int | float | str):
            params[name] = parameter.default
    return params


def build(factory: Callable, method: Method, offered: Mapping[str, Any]) -> Any:
    """Returns the factory's algorithm, made of what is offered and of its own arguments.

    Args:
      factory: what makes it.
      method: with the values of its own arguments.
      offered: what there is, by the name of its annotation in `core.world`.

    Raises:
      TypeError: if it returns something else.
    """
    given = world.needs(factory).items()
    arguments = {name: offered[mark.name] for name, mark in given if mark.name in offered}
    names = own_parameters(factory)
    own = {name: value for name, value in method.params.items() if name in names}
    return check_parts(factory(**arguments, **own))


def annotations() -> str:
    """Returns the names of the annotations of `core.world`."""
    return ", ".join(mark.name for mark in map(world.given_by, world.ANNOTATIONS) if mark)


def spoken(value: Any) -> str:
    """Returns what a field is called in messages: its text, or a function's name."""
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _toy_of(factory: Callable) -> Any:
    """An algorithm made of toy arguments where it has no defaults."""
    needed = world.needs(factory)
    usual = lambda name: _TOY[needed[name].name] if name in needed else 0.1
    taken = world.parameters_of(factory).items()
    return factory(**{name: usual(name) for name, p in taken if p.default is p.empty})
