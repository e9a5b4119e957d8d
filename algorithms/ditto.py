"""Ditto: a personal model beside the shared one, pulled towards it.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization",
ICML 2021, arXiv:2012.04221, Algorithm 1. The shared model is trained as without Ditto; in
addition, client k minimises over its own v_k

    f_k(v) + mu/2 |v - w|^2,    w the shared model as it was sent

and keeps v_k. Deviations: the personal steps use the batches of the visit, as many of them as the
shared ones; v_k starts from the shared model as client k receives it at its first visit, which is
the first model only for those that take part in the first round.
"""

from typing import NamedTuple

import optax

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import access, algorithm, local, world


class Held(NamedTuple):
    """What a client keeps."""

    personal: algorithm.PyTree  # v_k: parameters
    inner: algorithm.PyTree  # the client's state in the base algorithm


def ditto(
    base: algorithm.Algorithm,
    loss_fn: world.LossFn,
    *,
    client_tx: world.ClientTx,
    mu: float = 0.1,
) -> algorithm.Algorithm:
    """Adds a personal model for each client to any algorithm.

    What the algorithm shares, sends and is charged for does not change by a bit.

    Args:
      base: the algorithm that learns the shared model.
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, of the personal model.
      client_tx: optimizer of the personal model, fresh at every visit.
      mu: strength of the pull to the shared model, not negative; 0 is training alone.

    Returns:
      An algorithm whose clients keep one more tree like the parameters. Deployed with a
      client's state it is that client's personal model.

    Raises:
      ValueError: if `mu` is negative.
    """
    if isinstance(mu, int | float) and mu < 0:
        raise ValueError(f"mu must not be negative, got {mu}; 0 is training alone")
    tx = optax.chain(local.add_proximal(mu), client_tx)

    def init(model, replica, key):
        return Held(base.deploy(model, replica)[1], base.client.init(model, replica, key))

    def update(model, replica, state, data, ctx):
        upload, inner, metrics = base.client.update(model, replica, state.inner, data, ctx)
        near, anchor = base.deploy(model, replica)
        personal, _, own_metrics = local.local_steps(
            loss_fn, tx, state.personal, near, data, ctx, anchor=anchor
        )
        own_metrics = {f"personal_{name}": metric for name, metric in own_metrics.items()}
        return upload, Held(personal, inner), {**metrics, **own_metrics}

    def deploy(model, replica, state=None):
        if state is None:
            return base.deploy(model, replica)
        return base.deploy(model, replica)[0], state.personal

    return base._replace(
        client=algorithm.Client(init, update),
        deploy=deploy,
        access={**base.access, "target": access.Access.GRADIENTS},
    )


def ditto_fed_avg(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    mu: float = 0.1,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """`ditto` over `fed_avg`, with one local optimizer for both models.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer of the shared and of the personal model.
      mu: strength of the pull to the shared model, not negative; 0 is training alone.
      server_tx: as in `fed_avg`.
      weigh_fn: as in `fed_avg`.

    Returns:
      As `ditto`.
    """
    base = fed_avg(loss_fn, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
    return ditto(base, loss_fn, client_tx=client_tx, mu=mu)
