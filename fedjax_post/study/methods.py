"""The algorithm of an experiment: its optimizers, schedules and weights, or a baseline."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fedjax_post.algorithms import references
from fedjax_post.core import local, world
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.study import factories, objectives, private
from fedjax_post.study.learning import Method
from fedjax_post.study.optimizers import (
    CLIENT_OPTIMIZERS,
    SERVER_OPTIMIZERS,
    client_optimizer,
    schedule,
)
from fedjax_post.study.spec import Spec

_WEIGHTS = {
    "tokens": local.by_tokens,
    "examples": local.by_examples,
    "uniform": local.uniformly,
}
_USUAL = {
    "client_optimizer": "sgd",
    "client_schedule": "constant",
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "server_optimizer": "sgd",
    "server_schedule": "constant",
    "server_warmup": 0,
    "client_weight": "tokens",
}
_REFERENCES = {"central": references.central, "local": references.local_only}
_AROUND = ("uplink", "aggregate")
# Baselines are trained as usual outside a federation, not with the clients' usual optimizer.
_USUAL_REFERENCE = _USUAL | {"client_optimizer": "adamw", "client_schedule": "linear"}


def fill_defaults(spec: Spec) -> Spec:
    """Returns the experiment with defaults that depend on its algorithm and optimizers filled in.

    Raises:
      ValueError: for fields and arguments that the algorithm does not take, and if both
        `local_steps` and `local_epochs` are given.
    """
    method, training = spec.method, spec.training
    if None not in (training.local_steps, training.local_epochs):
        raise ValueError(
            f"local_steps={training.local_steps} and local_epochs={training.local_epochs} "
            "exclude each other; give one"
        )
    chosen = factories.find_factory(method.name)
    factories.check_taken(spec, chosen)
    federated = method.baseline == "none"
    factory = chosen if federated else references.central
    values: dict[str, Any] = {"params": factories.fill_params(method, chosen)}
    for name, usual in (_USUAL if federated else _USUAL_REFERENCE).items():
        if factories.takes(factory, name):
            values[name] = usual
    if factories.takes(factory, "client_weight") and private.is_on(spec):
        values["client_weight"] = "uniform"
    optimizer = method.client_optimizer or values.get("client_optimizer", "sgd")
    if factories.takes(factory, "client_lr"):
        values["client_lr"] = CLIENT_OPTIMIZERS[optimizer].learning_rate
    if factories.needs(factory, "ServerLr"):
        values["server_lr"] = _usual_server_lr(method, factory)
    elif factories.needs(factory, "ServerTx"):
        server = method.server_optimizer or values.get("server_optimizer", "sgd")
        values["server_lr"] = SERVER_OPTIMIZERS[server].learning_rate
    given = {name: value for name, value in vars(method).items() if value is not None}
    method = method.replace(**(values | given | {"params": values["params"]}))
    method = _fill_schedules(method, training.rounds)
    if training.local_epochs is None and training.local_steps is None:
        training = training.replace(local_steps=5)
    return spec.replace(method=method, training=training)


def _fill_schedules(method: Method, num_rounds: int) -> Method:
    """Returns the method with the end of its local schedule filled in.

    Raises:
      ValueError: for a floor without a schedule, or a warm-up that takes all rounds.
    """
    if (method.server_warmup or 0) >= num_rounds:
        raise ValueError(
            f"server_warmup={method.server_warmup} takes all rounds={num_rounds}; give fewer "
            "rounds of warm-up, or more rounds"
        )
    if method.client_schedule not in (None, "constant"):
        return method.replace(client_lr_floor=method.client_lr_floor or 0.0)
    if method.client_lr_floor is not None:
        raise ValueError(
            f"client_lr_floor={method.client_lr_floor:g} is the end of a schedule; give "
            "client_schedule=cosine or linear too"
        )
    return method


def make_algorithm(
    spec: Spec,
    *,
    participation: float,
    loss_of: Callable[[Algorithm], Callable] = lambda algorithm: sft_loss,
    guard_fn: Callable[[Callable], Any] = lambda loss_fn: loss_fn,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Algorithm:
    """Returns the algorithm of an experiment, or its baseline.

    Args:
      spec: the experiment, with every default filled in.
      participation: cohort size over population size, in (0, 1].
      loss_of: returns the loss for an algorithm, which depends on the access that it declares.
      guard_fn: returns the loss that the algorithm is given, such as one with private gradients.
      given: further values for factories, by the annotations of their arguments.

    Raises:
      ValueError: for a hyper-parameter that the factory refuses; if clients' ranks differ and
        the algorithm does not support it.
    """
    method, rounds = spec.method, spec.training.rounds
    by_round = schedule(
        method.client_schedule or "constant", rounds, floor=method.client_lr_floor or 0.0
    )
    client_tx = client_optimizer(
        method.client_optimizer or "sgd",
        method.client_lr or 0.0,
        weight_decay=method.weight_decay or 0.0,
        grad_clip=method.grad_clip or 0.0,
        schedule=by_round,
    )
    by_step = schedule(
        method.server_schedule or "constant", rounds, warmup=method.server_warmup or 0
    )
    server_lr = _scheduled(method.server_lr, by_step)
    offered: dict[str, Any] = {
        "ClientTx": client_tx,
        "LearningRate": _scheduled(method.client_lr or 0.0, by_round),
        "Participation": participation,
        "ServerLr": server_lr,
        **given,
    }
    if method.server_optimizer is not None:
        offered["ServerTx"] = SERVER_OPTIMIZERS[method.server_optimizer].make(server_lr)
    if method.client_weight is not None:
        offered["WeighFn"] = _WEIGHTS[method.client_weight]
    # The loss depends on the access that the algorithm declares, which is known once it is built.
    # It is called only later.
    offered["LossFn"] = guard_fn(lambda *given: loss_fn(*given))
    factory = _REFERENCES.get(method.baseline) or factories.find_factory(method.name)
    algorithm = factories.build(factory, method, offered)
    _check_ranked(spec, algorithm)
    loss_fn: Callable = loss_of(algorithm)
    return algorithm


def client_ranks(spec: Spec) -> list[int]:
    """Returns the LoRA ranks that are assigned to clients in turn.

    Raises:
      ValueError: for a rank above `adapter.rank`, or an adapter that is not LoRA.
    """
    ranks, adapter = list(spec.adapter.client_ranks), spec.adapter
    if adapter.kind != "lora" or max(ranks) > adapter.rank:
        raise ValueError(
            f"{_given_ranks(spec)}: each must be from 1 to `adapter.rank={adapter.rank}`, with "
            "`adapter=lora`"
        )
    return ranks


def _given_ranks(spec: Spec) -> str:
    return f"client_ranks={','.join(map(str, spec.adapter.client_ranks))}"


def _check_ranked(spec: Spec, algorithm: Algorithm) -> None:
    """Raises ValueError for unequal ranks if the algorithm trains all ranks on every client."""
    if spec.adapter.client_ranks and spec.method.baseline == "none" and not algorithm.ranked:
        raise ValueError(
            f"{_given_ranks(spec)}: method={factories.display_name(spec.method.name)} trains all "
            "components on every client; unequal ranks are for "
            f"{', '.join(factories.ranked_names())}, and for your own that follows `data.rank` "
            "and declares Algorithm(..., ranked=True)"
        )


def _usual_server_lr(method: Method, factory: Callable) -> float | None:
    """Returns the default of the factory's argument for the server's step size, if any.

    Raises:
      ValueError: if there is neither a default nor a given value.
    """
    marks = world.needs(factory)
    name = next(name for name, mark in marks.items() if mark.name == "ServerLr")
    default = world.parameters_of(factory)[name].default
    if default is not inspect.Parameter.empty:
        return default
    if method.server_lr is None:
        raise ValueError(
            f"method={factories.display_name(method.name)} needs `server_lr`; give it a value"
        )
    return None


def describe(spec: Spec) -> str:
    """Returns a description of the method, with every default filled in."""
    name = factories.display_name(spec.method.name)
    if spec.method.baseline != "none":
        name = f"baseline {spec.method.baseline}"
    visit = f"{spec.training.local_steps} steps"
    if spec.training.local_epochs is not None:
        visit = f"{spec.training.local_epochs} epochs"
    parts = [f"{name}: {visit} of {spec.training.batch_size} rows"]
    factory = factories.find_factory(spec.method.name)
    if spec.method.baseline != "none" or factories.takes(factory, "client_lr"):
        parts[0] += f" by {spec.method.client_optimizer or 'sgd'} {spec.method.client_lr:g}"
        if spec.method.client_schedule not in (None, "constant"):
            last = (spec.method.client_lr or 0) * (spec.method.client_lr_floor or 0)
            parts[0] += f" ({spec.method.client_schedule} to {last:g})"
    parts += objectives.describe(spec)
    if spec.method.baseline == "none":
        if spec.method.server_optimizer is not None:
            parts.append(f"server {spec.method.server_optimizer} {spec.method.server_lr:g}")
        if spec.method.server_schedule not in (None, "constant") or spec.method.server_warmup:
            warmup = f" after {spec.method.server_warmup} of warm-up" * bool(
                spec.method.server_warmup
            )
            parts.append(f"server schedule {spec.method.server_schedule}{warmup}")
        if spec.method.client_weight is not None:
            parts.append(f"weights by {spec.method.client_weight}")
        parts += [f"{name} {value}" for name, value in spec.method.params.items()]
        around = {name: getattr(spec.method, name) for name in _AROUND}
        parts += [
            f"{name} {factories.display_name(value)}" for name, value in around.items() if value
        ]
    return ", ".join(parts)


def _scheduled(learning_rate: Any, factor: Callable | None) -> Any:
    """Returns a step size, or the function of the count of steps that it is under a schedule."""
    if learning_rate is None or factor is None:
        return learning_rate
    return lambda count: learning_rate * factor(count)
