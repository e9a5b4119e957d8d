"""FedAdam, FedYogi and FedAdagrad: FedAvg with an adaptive server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295.

These are exactly Algorithm 2. Public code that calls itself FedAdam often runs a library's Adam
instead, which squares the mean update rather than its momentum, starts the second moment at zero
and corrects for bias: that form is in `fed_opt_optax`. The two differ most in early rounds; a
report should name the one that was used. OpenFedLLM's code is Algorithm 2 except for its first
round, whose momentum is the whole mean update rather than 1 - b1 of it.

Deviations: the mean update is weighted by `weigh_fn`; the paper's is uniform
(`weigh_fn=uniformly`).
"""

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, servers, world


def fed_adam(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 1e-2,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAdam, exactly Algorithm 2 of arXiv:2003.00295.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      server_lr: server step size (eta).
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      tau: adaptivity; the second moment starts at its square.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication cost.
    """
    server_tx = servers.literal_adam(server_lr, b1=b1, b2=b2, tau=tau)
    return fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)


def fed_yogi(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 1e-2,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedYogi, exactly Algorithm 2 of arXiv:2003.00295.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      server_lr: server step size (eta).
      b1: decay of the momentum, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      tau: adaptivity; the second moment starts at its square.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication cost.
    """
    server_tx = servers.literal_yogi(server_lr, b1=b1, b2=b2, tau=tau)
    return fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)


def fed_adagrad(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_lr: world.ServerLr = 1e-2,
    b1: float = 0.0,
    tau: float = 1e-3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAdagrad, exactly Algorithm 2 of arXiv:2003.00295.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      server_lr: server step size (eta).
      b1: decay of the momentum, in [0, 1).
      tau: adaptivity; the second moment starts at its square.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication cost.
    """
    server_tx = servers.literal_adagrad(server_lr, b1=b1, tau=tau)
    return fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
