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
# (number of rounds) -> (round -> factor on the step size)
SCHEDULES = {
    "constant": lambda num_rounds: None,
    "cosine": lambda num_rounds: optax.cosine_decay_schedule(1.0, num_rounds),
    "linear": lambda num_rounds: optax.linear_schedule(1.0, 0.0, num_rounds),
}


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
