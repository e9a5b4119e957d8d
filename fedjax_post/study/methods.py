"""The algorithm of an experiment: its optimizers, schedules and weights, or a reference point."""

from collections.abc import Callable, Mapping
from inspect import signature
from types import MappingProxyType
from typing import Any

from algorithms import ALGORITHMS, references
from fedjax_post.core import local
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.study import factories, objectives, private
from fedjax_post.study.optimizers import (
    CLIENT_OPTIMIZERS,
    SCHEDULES,
    SERVER_OPTIMIZERS,
    client_optimizer,
)
from fedjax_post.study.spec import Spec

_WEIGHTS = {
    "tokens": local.by_tokens,
    "examples": local.by_examples,
    "uniform": local.uniformly,
}
# the algorithms that heed the rank of a client
RANKED = (
    *("ffa_lora", "ro_lora", "fed_sa_lora", "flora", "fed_ex_lora"),
    *("flex_lora", "het_lora", "fed_svd", "lora_fair", "florist"),
)
_USUAL = {
    "client_optimizer": "sgd",
    "client_schedule": "constant",
    "weight_decay": 0.0,
    "grad_clip": 1.0,
    "server_optimizer": "sgd",
    "client_weight": "tokens",
}
_REFERENCES = {"central": references.central, "local": references.local_only}
_AROUND = ("uplink", "aggregate")
# A reference point is trained as one would without a federation, not by the clients' optimizer.
_USUAL_REFERENCE = _USUAL | {"client_optimizer": "adamw", "client_schedule": "linear"}


def filled(spec: Spec) -> Spec:
    """Returns the experiment with the values that depend on its algorithm and its optimizers.

    Raises:
      ValueError: for fields and arguments that the algorithm does not take, and for both
        `local_steps` and `local_epochs`.
    """
    method, training = spec.method, spec.training
    if None not in (training.local_steps, training.local_epochs):
        raise ValueError(
            f"local_steps={training.local_steps} and local_epochs={training.local_epochs} "
            "exclude each other; give one"
        )
    chosen = factories.find_factory(method.name)
    factories.check_taken(method, chosen)
    federated = method.baseline == "none"
    factory = chosen if federated else references.central
    values = {"params": factories.filled_params(method, chosen)}
    for name, usual in (_USUAL if federated else _USUAL_REFERENCE).items():
        if factories.takes(factory, name):
            values[name] = usual
    if factories.takes(factory, "client_weight") and private.is_on(spec):
        values["client_weight"] = "uniform"
    optimizer = method.client_optimizer or values.get("client_optimizer", "sgd")
    if factories.takes(factory, "client_lr"):
        values["client_lr"] = CLIENT_OPTIMIZERS[optimizer].learning_rate
    taken = signature(factory).parameters
    if "server_lr" in taken:
        values["server_lr"] = taken["server_lr"].default
    elif "server_tx" in taken:
        server = method.server_optimizer or values.get("server_optimizer", "sgd")
        values["server_lr"] = SERVER_OPTIMIZERS[server].learning_rate
    given = {name: value for name, value in vars(method).items() if value is not None}
    method = method.replace(**(values | given | {"params": values["params"]}))
    if training.local_epochs is None and training.local_steps is None:
        training = training.replace(local_steps=5)
    return spec.replace(method=method, training=training)


def make_algorithm(
    spec: Spec,
    *,
    participation: float,
    loss_of: Callable[[Algorithm], Callable] = lambda algorithm: sft_loss,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Algorithm:
    """Returns the algorithm of an experiment, or the reference point in its place.

    Args:
      spec: the experiment.
      participation: cohort size over population size.
      loss_of: the loss that an algorithm's access allows, from that algorithm.
      given: what else factories are offered, by the names of their arguments.

    Raises:
      ValueError: for a hyper-parameter that its factory refuses.
    """
    schedule = None
    if spec.method.client_schedule not in (None, "constant"):
        schedule = SCHEDULES[spec.method.client_schedule](spec.training.rounds)
    client_tx = client_optimizer(
        spec.method.client_optimizer or "sgd",
        spec.method.client_lr or 0.0,
        weight_decay=spec.method.weight_decay or 0.0,
        grad_clip=spec.method.grad_clip or 0.0,
        schedule=schedule,
    )
    offered: dict[str, Any] = {
        "client_tx": client_tx,
        "learning_rate": _by_round(spec.method.client_lr or 0.0, schedule),
        "participation": participation,
        "server_lr": spec.method.server_lr,
        **given,
    }
    if spec.method.server_optimizer is not None:
        offered["server_tx"] = SERVER_OPTIMIZERS[spec.method.server_optimizer].make(
            spec.method.server_lr
        )
    if spec.method.client_weight is not None:
        offered["weigh_fn"] = _WEIGHTS[spec.method.client_weight]
    # Which loss it may have is declared by what is built; called it is only later
    offered["loss_fn"] = lambda *given: loss_fn(*given)
    factory = _REFERENCES.get(spec.method.baseline) or factories.find_factory(spec.method.name)
    algorithm = factories.build(factory, spec.method, offered)
    loss_fn: Callable = loss_of(algorithm)
    return algorithm


def client_ranks(spec: Spec) -> list[int]:
    """Returns the ranks that clients have in turn.

    Raises:
      ValueError: for a rank that is none, and for an algorithm that would not heed it.
    """
    ranks = list(spec.adapter.client_ranks)
    told = f"client_ranks={','.join(map(str, ranks))}"
    if spec.adapter.kind != "lora" or not 1 <= min(ranks) <= max(ranks) <= spec.adapter.rank:
        raise ValueError(
            f"{told}: each must be from 1 to adapter.rank={spec.adapter.rank}, with adapter=lora"
        )
    if spec.method.name in ALGORITHMS and spec.method.name not in RANKED:
        raise ValueError(
            f"{told}: method={spec.method.name} trains all components on every client; "
            f"unequal ranks are for {', '.join(RANKED)}; plain averaging of factors padded "
            "with zeros is `method=het_lora` without `sparsity_weights`"
        )
    return ranks


def describe(spec: Spec) -> str:
    """Returns the method in words, every default filled in."""
    name = factories.spoken(spec.method.name)
    if spec.method.baseline != "none":
        name = f"baseline {spec.method.baseline}"
    visit = f"{spec.training.local_steps} steps"
    if spec.training.local_epochs is not None:
        visit = f"{spec.training.local_epochs} epochs"
    parts = [f"{name}: {visit} of {spec.training.batch_size} rows"]
    factory = factories.find_factory(spec.method.name)
    if spec.method.baseline != "none" or factories.takes(factory, "client_lr"):
        parts[0] += f" by {spec.method.client_optimizer or 'sgd'} {spec.method.client_lr:g}"
    parts += objectives.describe(spec)
    if spec.method.baseline == "none":
        if spec.method.server_optimizer is not None:
            parts.append(f"server {spec.method.server_optimizer} {spec.method.server_lr:g}")
        if spec.method.client_weight is not None:
            parts.append(f"weights by {spec.method.client_weight}")
        parts += [f"{name} {value}" for name, value in spec.method.params.items()]
        around = {name: getattr(spec.method, name) for name in _AROUND}
        parts += [f"{name} {factories.spoken(value)}" for name, value in around.items() if value]
    return ", ".join(parts)


def _by_round(learning_rate: float, schedule: Callable | None) -> float | Callable:
    if schedule is None:
        return learning_rate
    return lambda round: learning_rate * schedule(round)
