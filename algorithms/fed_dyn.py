"""FedDyn: adds a term to every client's loss, so that all of them have one common minimum.

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021,
arXiv:2111.04263, Algorithm 1. Client k minimises over y

    f_k(y) - <g_k, y> + alpha/2 |y - x|^2,    g_k <- g_k - alpha (y - x)

so that g_k tends to its own gradient at the common model; the server keeps the
mean h of the g_k over *all* clients, and never sends it:

    h <- h - alpha/N sum_{k in cohort} (y_k - x),    x <- mean_{k in cohort} y_k - h/alpha

Deviations: the local problem is not solved; local training takes a number of steps on it. That
moves no fixed point: where all y_k = x, h = 0 is the mean of the gradients. Clients have equal
weights, as in the paper (the authors' code scales alpha by their sizes where these differ). N is
the cohort size over `participation`: where cohorts differ in size, h moves as if each were of the
usual size, and is no longer the mean of the g_k; training then ends where the mean gradient is the
difference of the two. `fixed_mean` of the usual size, in place of the mean, removes it.
"""

import optax

from fedjax_post.core import aggregates, algorithm, local, world


def fed_dyn(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    alpha: float = 0.1,
    participation: world.Participation,
) -> algorithm.Algorithm:
    """Federated averaging with dynamic regularisation.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; it receives the gradient with both corrections.
      alpha: strength of the pull to the shared model, positive; the larger, the smaller the steps.
      participation: cohort size over population size, in (0, 1].

    Returns:
      An algorithm that shares the parameters themselves, at FedAvg's communication
      cost. A client keeps one tree like them, the server another.

    Raises:
      ValueError: if `alpha` is not positive or `participation` is outside (0, 1].
    """
    if isinstance(alpha, int | float) and not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}; fed_avg has no pull")
    if isinstance(participation, int | float) and not 0 < participation <= 1:
        raise ValueError(f"participation must be in (0, 1], got {participation}")
    tx = optax.chain(local.add_control(), local.add_proximal(alpha), client_tx)

    def update(model, x, g_k, data, ctx):
        bend = optax.tree.scale(-1.0, g_k)
        y, _, metrics = local.local_steps(loss_fn, tx, x, model, data, ctx, control=bend)
        drift = optax.tree.sub(y, x)
        g_k = optax.tree.add_scale(g_k, -alpha, drift)
        return algorithm.Upload(drift, local.uniformly(data)), g_k, metrics

    def serve(drift, h, x):
        h = optax.tree.add_scale(h, -alpha * participation, drift)
        return optax.tree.add_scale(optax.tree.add(x, drift), -1 / alpha, h), h

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, x, key: optax.tree.zeros_like(x), update),
        server=algorithm.Server(optax.tree.zeros_like, serve),
        aggregate=aggregates.weighted_mean(),
        read=algorithm.as_change,
    )
