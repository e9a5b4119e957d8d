"""Fine-tuning as a service: clients upload their rows once, and the model's host trains on them.

The strongest use of a closed model, and the one that people make of it, as OpenAI's fine-tuning API
offers it. The host learns every row of every client with its answer, in exchange for a model that
it alone can serve:

    client k, at its first visit:  uploads its questions and answers to the host
    host:                          trains an adapter on all rows, which it keeps
    federation:                    asks the trained model by its name

`tokens_sent` and `labels_sent` count all uploaded questions and answers; `places_sent` is 0, since
no call reads the prompt with which the rows of a file begin. The federation's server receives
nothing but who has uploaded. The host of this project trains LoRA (Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685); `provider.training` has the
details. As a federated method it is this project's own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.blackbox import discrete, shots
from fedjax_post.core import access, aggregates, algorithm, world


class Shared(NamedTuple):
    """What the federation knows."""

    tokens: jax.Array  # [P], int32: the prompt before every question, which stays as it is
    uploaded: jax.Array  # [clients], int32: 1 plus the round of each client's upload; 0: none


class Mark(NamedTuple):
    """That a client has uploaded its rows."""

    client_id: jax.Array  # (), int32
    round: jax.Array  # (), int32: 1 plus the round


def host_tuning(
    loss_fn: world.LossFn,
    *,
    dropped: world.Specials,
    num_clients: world.NumClients,
    num_epochs: int = 3,
    batch_rows: int = 8,
    multiplier: float = 1.0,
) -> algorithm.Algorithm:
    """Has the host of a closed model train it on the rows of all clients that have taken part.

    A client uploads the rows of its first visit and nothing at later ones. A visit of one epoch
    (`local_epochs=1`) uploads each of its rows once.

    Args:
      loss_fn: never called.
      dropped: int32 `[D]`: tokens of answers that are not sent, such as bos and eos.
      num_clients: of the federation.
      num_epochs: passes of the host over all rows, at least 1.
      batch_rows: rows of one step of the host, at least 1.
      multiplier: factor of the host's usual step size, above 0.

    Returns:
      An algorithm that needs TEXT and FINETUNE. A client keeps nothing; 8 bytes go up, and
      4 (P + clients) down. Deployed, it is the model that the host has trained on the rows that
      were uploaded so far, after waiting for it; before the first upload it is the model itself.

    Raises:
      ValueError: if a number is out of its range.
    """
    del loss_fn
    settings = {"num_epochs": num_epochs, "batch_rows": batch_rows, "multiplier": multiplier}
    return uploading(lambda rows, key: rows, dropped=dropped, num_clients=num_clients, **settings)


def uploading(
    rows_fn: Callable, *, dropped: jax.Array, num_clients: int, **settings: Any
) -> algorithm.Algorithm:
    """Returns the algorithm that uploads what `rows_fn` makes of a client's rows.

    Args:
      rows_fn: `((tokens, question, answer), key) -> the same`, of rows `[n, L]`.
      dropped: as in `host_tuning`.
      num_clients: as in `host_tuning`.
      **settings: of the host's training, as in `host_tuning`.
    """
    for name, least in {"num_epochs": 1, "batch_rows": 1, "multiplier": 1e-6}.items():
        if settings[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {settings[name]}")

    def update(model, replica, state, data, ctx):
        is_first = replica.uploaded[ctx.client_id] == 0
        taken = jnp.asarray(data.step_mask)[:, None, None] & is_first
        learned = jnp.asarray(data.batches["loss_mask"], bool) & taken
        flat = lambda x: x.reshape(-1, x.shape[-1])
        tokens = flat(jnp.asarray(data.batches["tokens"]))
        rows = rows_fn((tokens, *shots.sides(tokens, flat(learned), dropped)), ctx.key)
        model.upload(discrete.with_tokens(replica.tokens), *rows)
        _, question, answer = rows
        number = question.any(axis=1).sum().astype(jnp.float32)
        sent = (question.sum() + answer.sum()).astype(jnp.float32)
        told = {"queries": number, "tokens_sent": sent, "labels_sent": number}
        metrics = told | {"places_sent": jnp.float32(0)}
        mark = Mark(jnp.int32(ctx.client_id), jnp.int32(ctx.round) + 1)
        return algorithm.Upload(mark, jnp.float32(number > 0)), state, metrics

    def serve(stacked, state, shared):
        marks, weights = stacked
        rounds = jnp.where(weights > 0, marks.round, 0)
        uploaded = shared.uploaded.at[marks.client_id].max(rounds)
        return shared._replace(uploaded=uploaded), state

    def deploy(model, replica, state=None):
        tuned = model.tuned(replica.uploaded, **settings)
        return tuned, discrete.with_tokens(replica.tokens)

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.stack(),
        init=lambda params: Shared(discrete.tokens_of(params), jnp.zeros(num_clients, jnp.int32)),
        deploy=deploy,
        access={"target": access.Access.TEXT | access.Access.FINETUNE},
        value_like=lambda shared: Mark(jnp.int32(0), jnp.int32(0)),
        refuses=dict.fromkeys(algorithm.Around, "clients send no numbers, but that they uploaded"),
    )
