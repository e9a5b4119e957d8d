"""FedAvg: clients train, the server averages their changes.

McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv:1602.05629, Algorithm 1.

Deviations: the mean is taken over updates rather than models, which is the same
for a server step of 1 and lets any optax optimizer act as the server (Reddi et
al. 2021, arXiv:2003.00295, Algorithm 1); `fed_avg_m` gives it momentum (Hsu et
al. 2019, arXiv:1909.06335).
"""

import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


def fed_avg(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging; on the factors of an adapter it is FedIT (arXiv:2305.05644).

    With one step of plain SGD for each client, weighted by tokens, it equals a central step
    on the union of the batches. A round sends one copy of the parameters down and one up.
    Clients keep no state.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, the mean loss of one batch.
      client_tx: the local optimizer, fresh at every visit.
      server_tx: optimizer that receives the negated mean update; None adds the mean update.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves.

    Example:
      >>> import fedjax_post
      >>> from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params
      >>> algorithm = fed_avg(toy_loss, optax.sgd(0.05))
      >>> start = toy_params()
      >>> run = fedjax_post.run(algorithm, toy_model(), toy_clients(), params=start, rounds=3)
      >>> losses = [record["loss"] for state, record in run]
      >>> losses[2] < losses[0]
      True
    """

    def update(model, replica, state, data, ctx):
        params, _, metrics = local.local_steps(loss_fn, client_tx, replica, model, data, ctx)
        return algorithm.Upload(optax.tree.sub(params, replica), weigh_fn(data)), state, metrics

    client = algorithm.Client(algorithm.stateless, update)
    server = servers.server_optimizer(server_tx or optax.sgd(1.0))
    return algorithm.Algorithm(client, server, aggregates.weighted_mean(), read=algorithm.as_change)


def fed_avg_m(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 1.0,
    momentum: float = 0.9,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAvg with server momentum: m <- momentum m + mean update; x <- x + server_lr m.

    Momentum 0 is FedAvg.

    Args:
      loss_fn: as in `fed_avg`.
      client_tx: as in `fed_avg`.
      server_lr: server step size.
      momentum: decay of the momentum, in [0, 1).
      weigh_fn: as in `fed_avg`.

    Returns:
      An algorithm that shares the parameters themselves.
    """
    server_tx = optax.sgd(server_lr, momentum)
    return fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
