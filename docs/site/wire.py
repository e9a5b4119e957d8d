"""Bytes that a client sends and receives, for the algorithms that train an adapter."""

from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjax_post.adapters import add_lora
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.core import num_bytes, world
from fedjax_post.data import ArrayClients
from fedjax_post.hub import load_model
from fedjax_post.objectives import sft_loss
from fedjax_post.simulate import wire_bytes_of
from fedjax_post.study import about
from fedjax_post.study.factories import own_parameters

_GIVEN = {
    "LossFn": sft_loss,
    "ClientTx": optax.sgd(0.1),
    "LearningRate": 0.1,
    "Participation": 1.0,
}
_USUAL = ("ServerTx", "ServerLr", "WeighFn")  # arguments that have a default


class Sizes(NamedTuple):
    """Bytes per client and round, at its first visit, with the default adapter."""

    adapter: int
    of: dict[str, tuple[int, int]]  # algorithm -> (down, up); absent: not an adapter's


def sizes() -> Sizes:
    """Returns the bytes by shape; nothing is trained or compiled."""
    model, params = add_lora(load_model("builtin"), jax.random.key(0), rank=8, alpha=16)
    rows = {"tokens": np.zeros((8, 16), np.int32), "loss_mask": np.ones((8, 16), bool)}
    clients = ArrayClients([rows], batch_size=8, local_steps=5)
    found = {}
    for name, factory in ALGORITHMS.items():
        inputs = {argument: mark.name for argument, mark in world.needs(factory).items()}
        if about(name).access not in ({"target": "GRADIENTS"}, {"target": "WEIGHTS"}):
            continue
        if not set(inputs.values()) <= {*_GIVEN, *_USUAL}:
            continue
        given = {key: _GIVEN[mark] for key, mark in inputs.items() if mark in _GIVEN}
        given |= {key: 1 for key, p in own_parameters(factory).items() if p.default is p.empty}
        sent = wire_bytes_of(factory(**given), model, clients, params)
        found[name] = sent.down, sent.up
    return Sizes(num_bytes(params), found)
