"""FedDPA-F: clients tune a copy of the adapter that they first learned together.

Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024,
arXiv:2403.19211. For `tune_after` rounds the shared adapter (A, B) is learned; then clients copy
it as (A_k, B_k) and train the copy alone. A layer with a client's share s:

    y = x W + scale ((1 - s) x A B + s x A_k B_k)

Deviations: as in `fed_dpa`, what is deployed has one s, where the paper chooses s for each
instance at inference, and clients are weighted by `weigh_fn`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters import dual, factors
from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, world


class Copy(NamedTuple):
    """A client's own adapter."""

    own: algorithm.PyTree
    begun: jax.Array  # (), bool: it has been copied from the shared one


def fed_dpa_f(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    tune_after: int,
    share: float = 0.5,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedDPA-F: clients' own adapters are tuned copies of the shared one.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer of each adapter, fresh at every visit.
      tune_after: rounds in which the shared adapter is trained; after them it stays as it is.
      share: s, the weight of the client's own adapter beside the shared one, in [0, 1].
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the adapter's parameters, at FedAvg's cost of communication, and
      whose clients keep one adapter and a flag. Deployed with a client's state, both adapters
      stand side by side, as one adapter of 2 R components. A client that has no copy yet serves
      the shared adapter.

    Raises:
      ValueError: if `share` is outside [0, 1] or `tune_after` is negative; at the first visit,
        if anything but an adapter is to be trained.
    """
    dual.check_share(share)
    if tune_after < 0:
        raise ValueError(f"tune_after must not be negative, got {tune_after}; 0 only tunes")
    base = fed_avg(loss_fn, client_tx, weigh_fn=weigh_fn)

    def update(model, replica, copy, data, ctx):
        tuning = ctx.round >= tune_after
        choose = lambda one, other: jax.tree.map(lambda x, y: jnp.where(tuning, x, y), one, other)
        start = jax.tree.map(lambda x, y: jnp.where(copy.begun, x, y), copy.own, replica)
        trained = choose(start, replica)
        upload, _, metrics = base.client.update(model, trained, (), data, ctx)
        own = choose(optax.tree.add(trained, upload.value), copy.own)
        rest = choose(optax.tree.zeros_like(upload.value), upload.value)
        return upload._replace(value=rest), Copy(own, copy.begun | tuning), metrics

    def deploy(model, replica, copy=None):
        if copy is None:
            return model, replica
        own = jax.tree.map(lambda x, y: jnp.where(copy.begun, x, y), copy.own, replica)
        return dual.deploy_both(model, replica, factors.split(own), share=share)

    client = algorithm.Client(
        lambda model, replica, key: Copy(factors.join(factors.split(replica)), jnp.array(False)),
        update,
    )
    return base._replace(client=client, deploy=deploy)
