"""FedAdam, FedYogi and FedAdagrad in the form of many public codes: FedAvg with optax's server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, with the Adam, Yogi
and Adagrad of a library as the server's optimizer.

Deviations from Algorithm 2, which is in `fed_opt`: the second moment is that of the mean update
rather than of its momentum; it starts at zero in Adam and at optax's own values in Yogi (1e-6) and
Adagrad (0.1); Adam and Yogi correct for bias. The mean update is weighted by `weigh_fn`; the
paper's is uniform (`weigh_fn=uniformly`).
"""

import optax

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, world


def fed_adam_optax(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 1e-2,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAvg with `optax.adam` as the server's optimizer.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      server_lr: server step size (eta).
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      tau: the optimizer's eps, which is added to the root of the second moment.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication cost.
    """
    server_tx = optax.adam(server_lr, b1, b2, tau)
    return fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)


def fed_yogi_optax(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 1e-2,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAvg with `optax.yogi` as the server's optimizer.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      server_lr: server step size (eta).
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      tau: the optimizer's eps, which is added to the root of the second moment.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication cost.
    """
    server_tx = optax.yogi(server_lr, b1, b2, tau)
    return fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)


def fed_adagrad_optax(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 1e-2,
    tau: float = 1e-3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAvg with `optax.adagrad` as the server's optimizer.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      server_lr: server step size (eta).
      tau: the optimizer's eps, which is added to the second moment under the root.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication cost.
    """
    server_tx = optax.adagrad(server_lr, eps=tau)
    return fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
