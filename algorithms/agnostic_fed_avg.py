"""Agnostic federated averaging: trains for the worst mixture of the clients.

Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, arXiv:1902.00146: min over w, max
over weights l on the simplex, of sum_k l_k f_k(w). Along with the local steps, the weight of each
client increases with its loss:

    w <- sum_k l_k w_k,    l_k proportional to l_k exp(eta f_k(w))

Deviations: the weights are updated by exponentiated gradients, as in Ro et al. 2021
(arXiv:2104.02748, with a client as a domain; FedJAX's code), not by a projected step, and the
last model is served, where the paper serves the mean over all rounds. Client k keeps log l_k
itself, up to a constant that is the same for all clients: the weighted mean loss is subtracted
from its loss. This is the mean of the last round, as that of the current round is not known yet;
in the first round, it is that of the first round, subtracted as soon as it is known. The server
need not know who the clients are. Log-weights stay within 30 of that constant. If all clients
take part in every round, the weights are those of the equation; otherwise the weight of a client
does not change while it is absent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


class Shared(NamedTuple):
    """What goes down."""

    params: algorithm.PyTree  # w
    level: jax.Array  # (), float32: last round's mean loss, by the weights l
    first_level: jax.Array  # (), float32: that of the first round
    begun: jax.Array  # (), bool: there has been a round


class Sent(NamedTuple):
    """What goes up."""

    change: algorithm.PyTree
    loss: jax.Array  # (), float32: f_k(w)


class Held(NamedTuple):
    """What a client keeps."""

    log_weight: jax.Array  # (), float32: log l_k, up to a constant
    first_loss: jax.Array  # (), float32: f_k(w) in the first round
    waits: jax.Array  # (), bool: the log-weight does not include that loss yet


def agnostic_fed_avg(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    weight_lr: float = 0.1,
    server_tx: world.ServerTx | None = None,
) -> algorithm.Algorithm:
    """Federated averaging for the worst mixture of the clients.

    With weight_lr 0 it is FedAvg with equal weights.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      weight_lr: step size of the clients' log-weights, not negative.
      server_tx: as in `fed_avg`.

    Returns:
      An algorithm whose `shared` is a `Shared` and whose clients keep two numbers and a flag. A
      round sends one copy of the parameters each way, with two numbers and a flag down and one
      number up; each visit evaluates its batches once more.

    Raises:
      ValueError: if `weight_lr` is negative.
    """
    if isinstance(weight_lr, int | float) and weight_lr < 0:
        raise ValueError(f"weight_lr must not be negative, got {weight_lr}; 0 is FedAvg")
    server = servers.server_optimizer(server_tx or optax.sgd(1.0))

    clip = lambda log_weight: jnp.clip(log_weight, -30.0, 30.0)

    def update(model, replica, state, data, ctx):
        w = replica.params
        w_k, _, metrics = local.local_steps(loss_fn, client_tx, w, model, data, ctx)
        loss = local.mean_over_steps(lambda *args: loss_fn(w, model, *args)[0], data, ctx)
        owed = jnp.where(state.waits, weight_lr * (state.first_loss - replica.first_level), 0.0)
        log_weight = clip(state.log_weight + owed)
        climb = jnp.where(replica.begun, weight_lr * (loss - replica.level), 0.0)
        upload = algorithm.Upload(Sent(optax.tree.sub(w_k, w), loss), jnp.exp(log_weight))
        return upload, Held(clip(log_weight + climb), loss, ~replica.begun), metrics

    def serve(mean, state, shared):
        params, state = server.update(mean.change, state, shared.params)
        first = jnp.where(shared.begun, shared.first_level, mean.loss)
        return Shared(params, mean.loss, first, jnp.array(True)), state

    zero, no = jnp.zeros(()), jnp.array(False)
    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: Held(zero, zero, no), update),
        server=algorithm.Server(lambda shared: server.init(shared.params), serve),
        aggregate=aggregates.weighted_mean(),
        init=lambda params: Shared(params, zero, zero, no),
        deploy=lambda model, replica, state=None: (model, replica.params),
        value_like=lambda shared: Sent(shared.params, shared.level),
        read=lambda value, replica: algorithm.as_change(value.change, replica.params),
        refuses={
            algorithm.Around.RULE: "the clients with the largest losses have the largest weights, "
            "and a robust rule leaves them out",
            algorithm.Around.SCALE: "a bound would shrink a client's loss with its change",
            algorithm.Around.EQUAL: "the clients' weights are all that it adds to FedAvg",
        },
    )
