"""FedProx: FedAvg with a pull of each client towards the model that it was sent.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127, Algorithm 2: client k minimises
F_k(w) + mu/2 ||w - w_t||^2. Deviations: only the choice of the clients' weights.
"""

import optax

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, world


def fed_prox(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    mu: float = 0.01,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAvg with the pull mu (w - w_t) added to every local gradient.

    With mu = 0 it is FedAvg, and so it is with one local step, since the pull is zero at w_t.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; it receives the gradient with the pull.
      mu: strength of the pull, not negative.
      server_tx: as in `fed_avg`.
      weigh_fn: as in `fed_avg`.

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication cost.

    Raises:
      ValueError: if `mu` is negative.
    """
    if isinstance(mu, int | float) and mu < 0:
        raise ValueError(f"mu must not be negative, got {mu}; 0 is FedAvg")
    pulled_tx = optax.chain(local.add_proximal(mu), client_tx)
    return fed_avg(loss_fn, pulled_tx, server_tx=server_tx, weigh_fn=weigh_fn)
