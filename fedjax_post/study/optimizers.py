"""Optimizers and schedules by the names that an experiment gives them."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from fedjax_post.core import local


class Choice(NamedTuple):
    """An optimizer and its default step size."""

    make: Callable
    learning_rate: float


# (learning rate, weight decay) -> transformation
CLIENT_OPTIMIZERS = {
    "sgd": Choice(lambda lr, wd: optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr)), 0.5),
    "momentum": Choice(
        lambda lr, wd: optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr, 0.9)), 0.05
    ),
    "adamw": Choice(lambda lr, wd: optax.adamw(lr, weight_decay=wd), 5e-3),
}
# (learning rate) -> transformation
SERVER_OPTIMIZERS = {
    "sgd": Choice(optax.sgd, 1.0),
    "momentum": Choice(lambda lr: optax.sgd(lr, 0.9), 1.0),
    "nesterov": Choice(lambda lr: optax.sgd(lr, 0.9, nesterov=True), 0.7),
    "adam": Choice(lambda lr: optax.adam(lr, 0.9, 0.99, 1e-3), 1e-2),
}
SCHEDULES = ("constant", "cosine", "linear")


def schedule(name: str, num_rounds: int, *, floor: float = 0.0, warmup: int = 0) -> Callable | None:
    """Returns the factor on a step size, a function of the round; None if it always is 1.

    With `warmup`, it is `optax.warmup_cosine_decay_schedule(0, 1, warmup, num_rounds, floor)` for
    cosine: the first round has step size 0.

    Args:
      name: one of `SCHEDULES`.
      num_rounds: the round, counted from 0, at which the factor would be `floor`.
      floor: the last factor, in [0, 1].
      warmup: rounds over which the factor first grows from 0 to 1, below `num_rounds`.
    """
    if name == "constant" and not warmup:
        return None
    after = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, num_rounds - warmup, floor),
        "linear": optax.linear_schedule(1.0, floor, num_rounds - warmup),
    }[name]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup])


def client_optimizer(
    name: str,
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    grad_clip: float = 0.0,
    schedule: Callable | None = None,
) -> optax.GradientTransformation:
    """Returns a local optimizer.

    Args:
      name: a key of `CLIENT_OPTIMIZERS`.
      learning_rate: step size.
      weight_decay: decoupled for adamw, an L2 penalty for the others.
      grad_clip: largest global norm of a gradient; 0: no clipping.
      schedule: round -> factor on the updates; None: 1.
    """
    parts = [CLIENT_OPTIMIZERS[name].make(learning_rate, weight_decay)]
    if grad_clip:
        parts.insert(0, optax.clip_by_global_norm(grad_clip))
    if schedule is not None:
        parts.append(local.scale_by_round(schedule))
    return optax.chain(*parts)
