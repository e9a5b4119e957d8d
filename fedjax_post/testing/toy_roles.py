"""Toy federations over language models in roles: a target, its emulator, and a proxy.

    Case(my_algorithm(toy_roles.toy_loss, tx), world=toy_roles.EMULATED)

Rows are two tokens and a third one that depends on the second; the third is learned. Clients
differ in the distribution of their tokens.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.adapters.lora import add_lora
from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.batches import ArrayClients
from fedjax_post.model.emulator import emulate
from fedjax_post.model.views import LanguageModel
from fedjax_post.testing.models import tiny_model

NUM_CLIENTS, VOCAB = 6, 8


class World(NamedTuple):
    """The functions of a toy federation that a `Case` needs."""

    toy_model: Callable  # () -> models by role
    toy_params: Callable
    toy_loss: Callable
    toy_arrays: Callable
    toy_clients: Callable
    toy_mean_loss: Callable
    toy_best_loss: Callable


@functools.cache
def _make_adapted(num_layers: int) -> tuple[LanguageModel, PyTree]:
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "num_kv_heads": 2}
    model = tiny_model(num_layers=num_layers, vocab_size=VOCAB, max_positions=8, **sizes)
    return add_lora(model, jax.random.key(1), rank=2, alpha=4)


def toy_models() -> dict[str, PyTree]:
    """Returns a target of 4 layers, an emulator of 3 with the target's ends, a proxy of 1."""
    target = _make_adapted(4)[0]
    emulator = emulate(target, first=1, last=1, keep_every=2)
    return {"target": target, "emulator": emulator, "proxy": _make_adapted(1)[0]}


def toy_ends() -> PyTree:
    """Returns the initial parameters of the emulator's ends."""
    return toy_models()["emulator"].ends(_make_adapted(4)[1])


def toy_proxy_params() -> PyTree:
    """Returns the initial parameters of the proxy."""
    return _make_adapted(1)[1]


def toy_loss(params: PyTree, model: LanguageModel, batch: PyTree, key: jax.Array):
    """Returns the mean loss of the rows' last tokens, times their scales, and it as a metric.

    Args:
      params: the trained parameters.
      model: a language model.
      batch: "tokens" `[B, 3]` int32 and "scale" `[B]` float32.
      key: not used.
    """
    del key
    log_probs = model.scores(params, batch["tokens"]).log_probs[:, -1]
    loss = -jnp.mean(batch["scale"] * log_probs)
    return loss, {"loss": loss}


def toy_arrays(num_clients: int = NUM_CLIENTS) -> list[PyTree]:
    """Returns the clients' rows, 4 to 8 for each client."""
    clients = []
    for k in range(num_clients):
        rng = np.random.default_rng((4, k))
        size = 4 + k % 5
        likely = rng.dirichlet([1.0] * VOCAB)
        tokens = rng.choice(VOCAB, size=(size, 3), p=likely).astype(np.int32)
        tokens[:, 2] = (3 * tokens[:, 1] + 1) % VOCAB
        clients.append({"tokens": tokens, "scale": np.ones(size, np.float32)})
    return clients


def toy_clients(num_clients: int = NUM_CLIENTS, *, batch_size: int = 4, local_steps: int = 3):
    """Returns the toy population.

    Args:
      num_clients: number of clients.
      batch_size: see `ArrayClients`.
      local_steps: see `ArrayClients`.
    """
    return ArrayClients(toy_arrays(num_clients), batch_size=batch_size, local_steps=local_steps)


def toy_mean_loss(params: PyTree, model: PyTree) -> float:
    """Returns the mean over the clients of their mean losses; for models by role, the target's."""
    if isinstance(model, dict):
        params, model = {}, model["target"]
    key = jax.random.key(0)
    return float(np.mean([toy_loss(params, model, arrays, key)[0] for arrays in toy_arrays()]))


def toy_best_loss() -> float:
    """Returns the least possible loss: 0, since the last token follows from the second one."""
    return 0.0


EMULATED, STEERED = (
    World(toy_models, start, toy_loss, toy_arrays, toy_clients, toy_mean_loss, toy_best_loss)
    for start in (toy_ends, toy_proxy_params)
)
