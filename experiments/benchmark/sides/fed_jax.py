"""FedJAX's side of the FLUTE workload: its own FedAvg, optimizers, data and batching.

<python with fedjax> fed_jax.py
"""

import channel
import fedjax
import jax
import jax.numpy as jnp
import logistic
import numpy as np


def main():
    """Runs as many rounds as each request asks for."""
    out = channel.open_channel()
    arrays = logistic.flute_clients()
    population = fedjax.InMemoryFederatedData(dict(enumerate(arrays)))
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.jit(jax.grad(loss_fn)),
        fedjax.optimizers.sgd(logistic.FLUTE_RATE),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=logistic.FLUTE_BATCH, num_epochs=1, seed=0),
    )
    shape = logistic.FLUTE["features"], logistic.FLUTE["classes"]
    state, number = algorithm.init(jnp.zeros(shape)), 0

    def play(request):
        nonlocal state, number
        if request.get("evaluate"):
            return {"loss": logistic.mean_loss(state.params, arrays)}
        for _ in range(request["rounds"]):
            rng = np.random.default_rng((0, 0, number))
            ids = np.sort(rng.choice(logistic.FLUTE_CLIENTS, logistic.FLUTE_COHORT, replace=False))
            keys = jax.random.split(jax.random.PRNGKey(number), len(ids))
            chosen = population.get_clients(ids.tolist())
            cohort = [(i, data, key) for (i, data), key in zip(chosen, keys, strict=True)]
            state, _ = algorithm.apply(state, cohort)
            number += 1
        jax.block_until_ready(state.params)
        return {}

    channel.serve(out, play)


def loss_fn(params, batch, rng):
    """Returns the mean cross-entropy of a linear classifier, nats.

    Args:
      params: weights `[features, classes]`.
      batch: "x" `[B, features]` and "y" `[B]`, int32.
      rng: not used.
    """
    del rng
    logs = jax.nn.log_softmax(batch["x"] @ params)
    return -jnp.mean(jnp.take_along_axis(logs, batch["y"][:, None], 1))


if __name__ == "__main__":
    main()
