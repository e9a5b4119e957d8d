"""DiLoCo: long local runs of AdamW, outer steps of Nesterov momentum.

Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language
Models", 2023, arXiv:2311.08105, Algorithm 1. Every worker runs H inner steps from x,
with an optimizer whose state it keeps from round to round and never sends. The
mean of x - y_k is the gradient of the outer optimizer, Nesterov momentum of step
size 0.7 and momentum 0.9.

That workers keep their inner state is recalled, not checked against the paper; one public code
starts it afresh in each round (`fed_avg` with that outer optimizer).

Deviations: clients may be absent from some rounds, so an inner state may be some rounds old; they
are weighted by `weigh_fn`.
"""

import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


def di_loco(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 0.7,
    momentum: float = 0.9,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging with inner optimizers that keep their state, and Nesterov outside.

    With an inner optimizer that has no state, server_lr 1 and momentum 0 it is FedAvg.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the inner optimizer; AdamW in the paper.
      server_lr: outer step size.
      momentum: decay of the outer momentum, in [0, 1).
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication
      cost. A client keeps the inner optimizer's state: for AdamW, two trees like them.
    """

    def update(model, replica, opt_state, data, ctx):
        carry = replica, opt_state
        carry, _, metrics = local.continued_steps(loss_fn, client_tx, carry, model, data, ctx)
        params, opt_state = carry
        upload = algorithm.Upload(optax.tree.sub(params, replica), weigh_fn(data))
        return upload, opt_state, metrics

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: client_tx.init(replica), update),
        server=servers.server_optimizer(optax.sgd(server_lr, momentum, nesterov=True)),
        aggregate=aggregates.weighted_mean(),
        read=algorithm.as_change,
    )
