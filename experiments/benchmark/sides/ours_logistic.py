"""Our side of the comparisons of overhead: `fedjax_post.run`, with records and checkpoints.

python -m experiments.benchmark.sides.ours_logistic flute|small
"""

import sys
import tempfile
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedjax_post
from fedjax_post.algorithms import fed_avg
from fedjax_post.experiments import process
from fedjax_post.experiments.benchmark.sides import channel, logistic

_MANY = 1_000_000  # more rounds than are ever asked for


def main(workload: str) -> None:
    """Runs as many rounds as each request asks for."""
    out = channel.open_channel()
    process.prepare()
    if workload == "flute":
        arrays, cohort_size = logistic.flute_clients(), logistic.FLUTE_COHORT
        shape, learning_rate = logistic.FLUTE, logistic.FLUTE_RATE
        clients = fedjax_post.ArrayClients(arrays, batch_size=logistic.FLUTE_BATCH, local_epochs=1)
    else:
        arrays, cohort_size = logistic.small_clients(), logistic.SMALL_CLIENTS
        shape, learning_rate = logistic.SMALL, logistic.SMALL_RATE
        size = len(arrays[0]["y"])
        clients = fedjax_post.ArrayClients(
            arrays, batch_size=size, local_steps=logistic.SMALL_STEPS
        )
    with tempfile.TemporaryDirectory() as directory:
        plan = fedjax_post.Plan(sampler=fedjax_post.uniform(cohort_size), directory=directory)
        params = jnp.zeros((shape["features"], shape["classes"]))
        algorithm = fed_avg(loss_fn, optax.sgd(learning_rate))
        rounds = fedjax_post.run(algorithm, None, clients, params=params, rounds=_MANY, plan=plan)
        state: Any = None

        def play(request):
            nonlocal state
            if request.get("evaluate"):
                return {"loss": logistic.mean_loss(state.shared, arrays)}
            for played in islice(rounds, request["rounds"]):
                state = played[0]
            jax.block_until_ready(state)
            return {}

        channel.serve(out, play)


def loss_fn(params, model, batch, key):
    """Returns the mean cross-entropy of a linear classifier, nats, and its metrics.

    Args:
      params: weights `[features, classes]`.
      model: not used.
      batch: "x" `[B, features]` and "y" `[B]`, int32.
      key: not used.
    """
    del model, key
    losses = optax.softmax_cross_entropy_with_integer_labels(batch["x"] @ params, batch["y"])
    return losses.mean(), {"loss": losses.mean()}


if __name__ == "__main__":
    main(*sys.argv[1:])
