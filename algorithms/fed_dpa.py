"""FedDPA-T: an adapter that all clients share, and beside it one that stays with its client.

Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024,
arXiv:2403.19211. A layer with a shared adapter (A, B), a client's own (A_k, B_k) and its
share s:

    y = x W + scale ((1 - s) x A B + s x A_k B_k)

At each visit but those of the first round, client k first trains (A_k, B_k) beside (A, B) as it
was sent, then (A, B) alone; the latter is averaged. The client's own adapter starts with A_k
random and B_k zero. FedDPA-F is `fed_dpa_f`.

Deviations: the order of training and the start are those of the authors' code. At inference the
paper chooses s for each instance, from the cosine of its last hidden state to those of some of
the client's training instances. That concerns serving and is not implemented: what is deployed
has one s. Clients are weighted by `weigh_fn`, in the authors' code equally; all train all R
components.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters import dual, factors
from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, world


def fed_dpa(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    share: float = 0.5,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedDPA-T: both adapters are trained at every visit, one after the other.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer of each adapter, fresh at every visit.
      share: s, the weight of the client's own adapter beside the shared one, in [0, 1].
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the adapter's parameters, at FedAvg's cost of communication, and
      whose clients keep one adapter. Deployed with a client's state, both adapters stand side by
      side, as one adapter of 2 R components.

    Raises:
      ValueError: if `share` is outside [0, 1]; at the first visit, if anything but an
        adapter is to be trained.
    """
    dual.check_share(share)
    base = fed_avg(loss_fn, client_tx, weigh_fn=weigh_fn)

    def init(model, replica, key):
        start = factors.split(replica)
        return factors.redraw(start._replace(b=optax.tree.zeros_like(start.b)), key)

    def update(model, replica, own, data, ctx):
        own_key, key = jax.random.split(ctx.key)
        beside = factors.split(replica)

        def own_loss(own, model, batch, key):
            wide, both = factors.concatenate(model, beside, own, share)
            return loss_fn(factors.join(both), wide, batch, key)

        own_ctx = ctx._replace(key=own_key)
        moved, _, own_metrics = local.local_steps(own_loss, client_tx, own, model, data, own_ctx)
        own = jax.tree.map(lambda new, old: jnp.where(ctx.round > 0, new, old), moved, own)
        args = model, replica, (), data, ctx._replace(key=key)
        upload, _, metrics = base.client.update(*args)
        return upload, own, metrics | {f"personal_{name}": m for name, m in own_metrics.items()}

    def deploy(model, replica, own=None):
        if own is None:
            return model, replica
        return dual.deploy_both(model, replica, own, share=share)

    return base._replace(client=algorithm.Client(init, update), deploy=deploy)
