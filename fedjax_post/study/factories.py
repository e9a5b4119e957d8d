"""Factories of algorithms, read by their signatures: which settings each takes, and its inputs."""

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
from fedjax_post.core.local import by_tokens
from fedjax_post.disclosure import ledger
from fedjax_post.study.calls import parse
from fedjax_post.study.fields import unknown
from fedjax_post.study.files import load_code
from fedjax_post.study.learning import Method
from fedjax_post.study.spec import Spec

Factories = Mapping[str, Callable]

# setting -> the annotations of the arguments that it supplies; all other general settings
# apply to every algorithm
FEEDS = {
    "client_optimizer": ("ClientTx",),
    "client_lr": ("ClientTx", "LearningRate"),
    "client_schedule": ("ClientTx", "LearningRate"),
    "client_lr_floor": ("ClientTx", "LearningRate"),
    "weight_decay": ("ClientTx",),
    "grad_clip": ("ClientTx",),
    "server_optimizer": ("ServerTx",),
    "server_lr": ("ServerTx", "ServerLr"),
    "server_schedule": ("ServerTx", "ServerLr"),
    "server_warmup": ("ServerTx", "ServerLr"),
    "client_weight": ("WeighFn",),
    "embeddings": ("Embeddings",),
}
# Arguments with which an algorithm is built only to read its declared access
_TOY: Mapping[str, Any] = {
    "LossFn": lambda params, model, batch, key: (0.0, {}),
    "ClientTx": optax.sgd(0.1),
    "LearningRate": 0.1,
    "ServerTx": optax.sgd(1.0),
    "ServerLr": 1.0,
    "WeighFn": by_tokens,
    "Participation": 1.0,
    "Candidates": np.arange(2),
    "Embeddings": np.zeros((2, 2), np.float32),
    "Separator": np.int32(0),
    "Specials": np.arange(1),
    "VocabSize": 2,
    "NumClients": 2,
}


def find_factory(name: str | Callable) -> Callable:
    """Returns the factory of a registered name or of `package.module:factory`.

    Raises:
      ValueError: for an unknown name, with the nearest one or all.
    """
    if callable(name):
        return name
    if "(" in name:
        return parse_wrapper(name)
    if ":" in name:
        return load_code(name, field="method")
    if name not in ALGORITHMS:
        problem = unknown(name, ALGORITHMS, what="algorithm")
        raise ValueError(f"method={problem} Your own algorithm is package.module:factory")
    return ALGORITHMS[name]


def parse_wrapper(text: str) -> Callable:
    """Returns the factory of a wrapper around an algorithm, from text as `ditto(fed_adam, mu=0.5)`.

    The text holds the wrapper's hyper-parameters; the algorithm's are given as usual. An
    algorithm of your own is wrapped as `ditto('package.module:factory')`.

    Raises:
      ValueError: for an unknown wrapper or a wrong argument, naming those that exist.
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
    toy = _TOY["LossFn"]  # built once with toy parts, so that wrong arguments are refused early
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


def declared_access() -> dict[str, Mapping[str, Access]]:
    """Returns the access that every registered algorithm declares, by model role."""
    return {name: _toy_of(factory).access for name, factory in ALGORITHMS.items()}


def access_of(name: str | Callable) -> Mapping[str, Access]:
    """Returns the access that an algorithm declares, by model role; see `find_factory`."""
    return _toy_of(find_factory(name)).access


def is_tuned_by_host(name: str | Callable) -> bool:
    """Returns whether an algorithm has the target's host fine-tune it.

    An algorithm of your own that cannot be built with toy values is taken for one that does not.
    """
    factory = find_factory(name)
    try:
        needed = _toy_of(factory).access
    except Exception:  # of somebody's own code; the run builds it again, with what it really takes
        return False
    return ledger.is_tuned_by_host(needed)


def ranked_names() -> list[str]:
    """Returns the registered algorithms that support a LoRA rank for each client."""
    return [name for name, factory in ALGORITHMS.items() if _toy_of(factory).ranked]


def own_parameters(factory: Callable) -> dict[str, inspect.Parameter]:
    """Returns a factory's hyper-parameters: the arguments without an annotation of `core.world`."""
    needed = world.needs(factory)
    parameters = world.parameters_of(factory)
    return {name: value for name, value in parameters.items() if name not in needed}


def takers(flag: str, factories: Factories) -> list[str]:
    """Returns the names of the algorithms that take a setting."""
    return [name for name, factory in factories.items() if takes(factory, flag)]


def takes(factory: Callable, flag: str) -> bool:
    """Returns whether a factory takes a setting."""
    if flag in FEEDS:
        return any(needs(factory, annotation) for annotation in FEEDS[flag])
    return flag in own_parameters(factory)


def needs(factory: Callable, annotation: str) -> bool:
    """Returns whether a factory has an argument with an annotation of `core.world`."""
    return annotation in {mark.name for mark in world.needs(factory).values()}


def check_taken(spec: Spec, factory: Callable) -> None:
    """Checks that the chosen algorithm uses all given fields and arguments.

    Raises:
      ValueError: naming the field that it does not use, and the algorithms that do.
    """
    method, name_of = spec.method, display_name(spec.method.name)
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
            problem = unknown(name, own_parameters(factory), what="argument")
            raise ValueError(f"method={name_of}: {problem}")
        raise ValueError(
            f"{field}={value}: method={name_of} does not take it; it belongs to {', '.join(known)}"
        )


def fill_params(method: Method, factory: Callable) -> dict[str, Any]:
    """Returns the value of every hyper-parameter of an algorithm, defaults included.

    Raises:
      ValueError: for a hyper-parameter without a value and without a default.
    """
    params = dict(method.params)
    for name, parameter in own_parameters(factory).items():
        if name in params or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            raise ValueError(
                f"method={display_name(method.name)}: its argument {name} has no value; give one "
                f"in `method.params`, or annotate the argument: as `{name}: float` for a flag, or, "
                "as in `loss_fn: LossFn` and `client_tx: ClientTx`, with an annotation of "
                f"fedjax_post.core.world, by which it is supplied: {annotations()}"
            )
        if isinstance(parameter.default, bool | int | float | str):
            params[name] = parameter.default
    return params


def build(factory: Callable, method: Method, offered: Mapping[str, Any]) -> Any:
    """Returns the factory's algorithm.

    Args:
      factory: makes the algorithm.
      method: holds the values of the factory's hyper-parameters.
      offered: values for the other arguments, by the names of their annotations in `core.world`.

    Raises:
      TypeError: if the factory does not return an algorithm.
    """
    given = world.needs(factory).items()
    arguments = {name: offered[mark.name] for name, mark in given if mark.name in offered}
    names = own_parameters(factory)
    own = {name: value for name, value in method.params.items() if name in names}
    return check_parts(factory(**arguments, **own))


def annotations() -> str:
    """Returns the names of the annotations of `core.world`, separated by commas."""
    return ", ".join(mark.name for mark in map(world.given_by, world.ANNOTATIONS) if mark)


def display_name(value: Any) -> str:
    """Returns a field's value for messages: its text, or a function's name."""
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _toy_of(factory: Callable) -> Any:
    """Returns an algorithm with toy values for all arguments without defaults."""
    needed = world.needs(factory)
    usual = lambda name: _TOY[needed[name].name] if name in needed else 0.1
    taken = world.parameters_of(factory).items()
    return factory(**{name: usual(name) for name, p in taken if p.default is p.empty})
