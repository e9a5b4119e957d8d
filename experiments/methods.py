"""From flags to an algorithm: its optimizers, schedules and weights, or a reference point."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from absl import flags

from algorithms import references
from experiments import factories, objectives
from experiments.optimizers import CLIENT_OPTIMIZERS, SCHEDULES, SERVER_OPTIMIZERS, client_optimizer
from fedjax_post.core import local, world
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.objectives.sft import sft_loss

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
    "client_weight": "tokens",
}
_REFERENCES = {"central": references.central, "local": references.local_only}
_AROUND = ("uplink", "aggregate")
# A reference point is trained as one would without a federation, not by the clients' optimizer.
_USUAL_REFERENCE = _USUAL | {"client_optimizer": "adamw", "client_schedule": "linear"}


def fill_defaults(options: flags.FlagValues, factory: Callable) -> None:
    """Gives the flags that depend on each other, or on the algorithm, the values they stand for.

    Raises:
      ValueError: if both `--local_steps` and `--local_epochs` are given.
    """
    federated = options.baseline == "none"
    factory = factory if federated else references.central
    for name, usual in (_USUAL if federated else _USUAL_REFERENCE).items():
        if factories.takes(factory, name):
            _fill(options, name, usual)
    if factories.takes(factory, "client_lr"):
        usual_lr = CLIENT_OPTIMIZERS[options.client_optimizer or "sgd"].learning_rate
        _fill(options, "client_lr", usual_lr)
    if factories.needs(factory, "ServerLr"):
        _fill(options, "server_lr", _usual_server_lr(options, factory))
    elif factories.needs(factory, "ServerTx"):
        _fill(options, "server_lr", SERVER_OPTIMIZERS[options.server_optimizer].learning_rate)
    if options.local_epochs is None:
        _fill(options, "local_steps", 5)
    elif options.local_steps is not None:
        raise ValueError(
            f"--local_steps={options.local_steps} and --local_epochs={options.local_epochs} "
            "exclude each other; give one"
        )


def make_algorithm(
    options: flags.FlagValues,
    *,
    participation: float,
    loss_of: Callable[[Algorithm], Callable] = lambda algorithm: sft_loss,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Algorithm:
    """Returns the algorithm that the flags name, or the reference point in its place.

    Args:
      options: parsed flags.
      participation: cohort size over population size.
      loss_of: the loss that an algorithm's access allows, from that algorithm.
      given: what else factories are offered, by the annotations of their arguments.

    Raises:
      ValueError: for a hyper-parameter that its factory refuses; where clients' ranks differ
        and the algorithm does not heed them.
    """
    schedule = None
    if options.client_schedule not in (None, "constant"):
        schedule = SCHEDULES[options.client_schedule](options.num_rounds)
    client_tx = client_optimizer(
        options.client_optimizer or "sgd",
        options.client_lr or 0.0,
        weight_decay=options.weight_decay or 0.0,
        grad_clip=options.grad_clip or 0.0,
        schedule=schedule,
    )
    offered: dict[str, Any] = {
        "ClientTx": client_tx,
        "LearningRate": _by_round(options.client_lr or 0.0, schedule),
        "Participation": participation,
        "ServerLr": options.server_lr,
        **given,
    }
    if options.server_optimizer is not None:
        offered["ServerTx"] = SERVER_OPTIMIZERS[options.server_optimizer].make(options.server_lr)
    if options.client_weight is not None:
        offered["WeighFn"] = _WEIGHTS[options.client_weight]
    # Which loss it may have is declared by what is built; called it is only later
    offered["LossFn"] = lambda *given: loss_fn(*given)
    factory = _REFERENCES.get(options.baseline) or factories.find_factory(options.algorithm)
    algorithm = factories.build(factory, options, offered)
    _check_ranked(options, algorithm)
    loss_fn: Callable = loss_of(algorithm)
    return algorithm


def client_ranks(options: flags.FlagValues) -> list[int]:
    """Returns the ranks that clients have in turn.

    Raises:
      ValueError: for a rank that is none.
    """
    told = _told_ranks(options)
    try:
        ranks = [int(rank) for rank in options.client_ranks]
    except ValueError as error:
        raise ValueError(f"{told}: {error}; give whole numbers, such as 2,4,8") from None
    if options.adapter != "lora" or not 1 <= min(ranks) <= max(ranks) <= options.lora_rank:
        raise ValueError(
            f"{told}: each must be from 1 to --lora_rank={options.lora_rank}, with --adapter=lora"
        )
    return ranks


def _told_ranks(options: flags.FlagValues) -> str:
    return f"--client_ranks={','.join(options.client_ranks)}"


def _check_ranked(options: flags.FlagValues, algorithm: Algorithm) -> None:
    """Refuses unequal ranks for an algorithm that would train all components on every client."""
    if options.client_ranks and options.baseline == "none" and not algorithm.ranked:
        raise ValueError(
            f"{_told_ranks(options)}: --algorithm={options.algorithm} trains all components on "
            f"every client; unequal ranks are for {', '.join(factories.ranked())}, and for your "
            "own that heeds `data.rank` and says so by Algorithm(..., ranked=True)"
        )


def _usual_server_lr(options: flags.FlagValues, factory: Callable) -> float | None:
    """The default of the argument that is given the server's step size.

    Raises:
      ValueError: if it has none, and no flag gives it one.
    """
    marks = world.needs(factory)
    name = next(name for name, mark in marks.items() if mark.name == "ServerLr")
    default = world.parameters_of(factory)[name].default
    if default is not inspect.Parameter.empty:
        return default
    if options.server_lr is None:
        raise ValueError(f"--algorithm={options.algorithm} needs --server_lr; give it a value")
    return None


def describe(options: flags.FlagValues) -> str:
    """Returns the method in words, every default filled in."""
    name = options.algorithm if options.baseline == "none" else f"baseline {options.baseline}"
    visit = f"{options.local_steps} steps"
    if options.local_epochs is not None:
        visit = f"{options.local_epochs} epochs"
    parts = [f"{name}: {visit} of {options.batch_size} rows"]
    factory = factories.find_factory(options.algorithm)
    if options.baseline != "none" or factories.takes(factory, "client_lr"):
        parts[0] += f" by {options.client_optimizer or 'sgd'} {options.client_lr:g}"
    parts += objectives.describe(options)
    if options.baseline == "none":
        if options.server_optimizer is not None:
            parts.append(f"server {options.server_optimizer} {options.server_lr:g}")
        if options.client_weight is not None:
            parts.append(f"weights by {options.client_weight}")
        own = factories.own_parameters(factory)
        parts += [f"{name} {options[name].value}" for name in own if name in options]
        parts += [f"{name} {options[name].value}" for name in _AROUND if options[name].value]
    return ", ".join(parts)


def _by_round(learning_rate: float, schedule: Callable | None) -> float | Callable:
    if schedule is None:
        return learning_rate
    return lambda round: learning_rate * schedule(round)


def _fill(options: flags.FlagValues, name: str, value: object) -> None:
    if options[name].value is None:
        options[name].value = value
