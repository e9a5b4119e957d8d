"""The two reference points of a federation: all data in one place, and no exchange at all.

Both are written as algorithms, so that they use the same engine, data, records and
checkpoints. They are not federated algorithms: `central` expects a population of one
that holds the union of a cohort's batches, `local_only` sends nothing.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


class Trainee(NamedTuple):
    """A model in training, with its optimizer."""

    params: algorithm.PyTree
    opt_state: algorithm.PyTree


def central(loss_fn: world.LossFn, client_tx: world.ClientTx) -> algorithm.Algorithm:
    """One model trained on pooled data, with an optimizer state kept from round to round.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the optimizer.

    Returns:
      An algorithm for a population of one that shares the parameters themselves.
    """

    def update(model, replica, opt_state, data, ctx):
        (params, opt_state), _, metrics = local.continued_steps(
            loss_fn, client_tx, (replica, opt_state), model, data, ctx
        )
        change = optax.tree.sub(params, replica)
        return algorithm.Upload(change, jnp.float32(1)), opt_state, metrics

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: client_tx.init(replica), update),
        server=servers.server_optimizer(optax.sgd(1.0)),
        aggregate=aggregates.weighted_mean(),
    )


def local_only(loss_fn: world.LossFn, client_tx: world.ClientTx) -> algorithm.Algorithm:
    """Trains each client alone: a model and an optimizer per client; nothing is sent.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the optimizer.

    Returns:
      An algorithm whose client state is a `Trainee`; deployed with a client's
      state it is that client's model, without one the first parameters.
    """

    def init(model, replica, key):
        return Trainee(replica, client_tx.init(replica))

    def update(model, replica, state, data, ctx):
        carry, _, metrics = local.continued_steps(
            loss_fn, client_tx, tuple(state), model, data, ctx
        )
        return algorithm.Upload((), jnp.float32(1)), Trainee(*carry), metrics

    def deploy(model, replica, state=None):
        return model, replica if state is None else state.params

    return algorithm.Algorithm(
        client=algorithm.Client(init, update),
        server=algorithm.idle(),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.nothing(),
        deploy=deploy,
    )
