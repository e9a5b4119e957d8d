"""Agnostic federated averaging: the worst mixture of the clients is what counts.

Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, arXiv:1902.00146, for
min over w, max over the weights l of sum_k l_k f_k(w), l on the simplex. Together with
the local steps, each client's weight climbs its loss:

    w <- sum_k l_k w_k,    l_k proportional to l_k exp(eta f_k(w))

Deviations: the weights climb by exponentiated gradients, as in Ro et al. 2021
(arXiv:2104.02748, with a client as a domain; FedJAX's code), rather than by a projected
step, and the last model is served, where the paper serves the mean over all rounds. Client k
keeps log l_k itself, up to a constant that is the same for all: the server subtracts
the weighted mean loss of the last round, and needs to know nobody. Log-weights stay
within 30 of it. The constant is the same only for clients that take part equally
often; a client's weight rests while it is absent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


class Shared(NamedTuple):
    """What goes down; up come the change of the one and the value of the other."""

    params: algorithm.PyTree  # w
    level: jax.Array  # (), float32: last round's mean loss, by the weights l


def agnostic_fed_avg(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    weight_lr: float = 0.1,
    server_tx: world.ServerTx | None = None,
) -> algorithm.Algorithm:
    """Federated averaging for the clients' worst mixture.

    With weight_lr 0 it is FedAvg of equal weights.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      weight_lr: step size of the clients' log-weights, not negative.
      server_tx: as in `fed_avg`.

    Returns:
      An algorithm whose `shared` is a `Shared` and whose clients keep one number. A
      round sends one copy of the parameters and a number each way; each visit evaluates
      its batches once more.

    Raises:
      ValueError: if `weight_lr` is negative.
    """
    if isinstance(weight_lr, int | float) and weight_lr < 0:
        raise ValueError(f"weight_lr must not be negative, got {weight_lr}; 0 is FedAvg")
    server = servers.server_optimizer(server_tx or optax.sgd(1.0))

    def update(model, replica, log_weight, data, ctx):
        w, level = replica
        w_k, _, metrics = local.local_steps(loss_fn, client_tx, w, model, data, ctx)
        loss = local.mean_over_steps(lambda *args: loss_fn(w, model, *args)[0], data, ctx)
        # nothing to compare with in the first round
        climb = jnp.where(ctx.round > 0, weight_lr * (loss - level), 0.0)
        value = Shared(optax.tree.sub(w_k, w), loss)
        upload = algorithm.Upload(value, jnp.exp(log_weight))
        return upload, jnp.clip(log_weight + climb, -30.0, 30.0), metrics

    def serve(mean, state, shared):
        params, state = server.update(mean.params, state, shared.params)
        return Shared(params, mean.level), state

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: jnp.zeros(()), update),
        server=algorithm.Server(lambda shared: server.init(shared.params), serve),
        aggregate=aggregates.weighted_mean(),
        init=lambda params: Shared(params, jnp.zeros(())),
        deploy=lambda model, replica, state=None: (model, replica.params),
        read=lambda value, replica: algorithm.as_change(value.params, replica.params),
    )
