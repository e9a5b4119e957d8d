"""FedDPA: an adapter that all share, and beside it one that stays with its client.

Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024,
arXiv:2403.19211. A layer with a shared adapter (A, B), a client's own (A_k, B_k) and its
share s:

    y = x W + scale ((1 - s) x A B + s x A_k B_k)

`fed_dpa` is FedDPA-T: at each visit but those of the first round, client k first trains
(A_k, B_k) beside (A, B) as it was sent, then (A, B) alone; the latter is averaged. The own
adapter starts afresh: A_k random, B_k zero. `fed_dpa_f` is FedDPA-F: the shared adapter
is learned first; then clients copy it and train the copy alone.

Deviations: T's order and start are those of the authors' code. At inference the paper
chooses s for each instance, from the cosine of its last hidden state to those of some of
the client's training instances. That is a matter of serving and is not here: what is
deployed has one s. Clients count by `weigh_fn`, in that code alike; all train all R
components.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from fedjax_post.algorithms.fed_avg import fed_avg

from fedjax_post.adapters import factors
from fedjax_post.core import algorithm, local, world


class Copy(NamedTuple):
    """A client's own adapter in FedDPA-F."""

    own: algorithm.PyTree
    begun: jax.Array  # (), bool: it has been copied from the shared one


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
      share: s, how much the own adapter counts beside the shared one, in [0, 1].
      weigh_fn: `(ClientData) -> ()`, how much a client counts.

    Returns:
      An algorithm that shares the adapter's parameters, at FedAvg's cost on the wire, and
      whose clients keep one adapter. Deployed with a client's state, both stand side by
      side, as one adapter of 2 R components.

    Raises:
      ValueError: if `share` is outside [0, 1]; at the first visit, if anything but an
        adapter is to be trained.
    """
    _check(share)
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
        return (model, replica) if own is None else _both(model, replica, own, share)

    return base._replace(client=algorithm.Client(init, update), deploy=deploy)


def fed_dpa_f(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    tune_after: int,
    share: float = 0.5,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedDPA-F: clients' own adapters are tuned copies of the one that they learned together.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer of each adapter, fresh at every visit.
      tune_after: rounds of learning together; in those that follow the shared adapter rests.
      share: s, how much the own adapter counts beside the shared one, in [0, 1].
      weigh_fn: `(ClientData) -> ()`, how much a client counts.

    Returns:
      As `fed_dpa`. A client that was not there for the second part serves the shared adapter.

    Raises:
      ValueError: if `share` is outside [0, 1] or `tune_after` negative; at the first visit,
        if anything but an adapter is to be trained.
    """
    _check(share)
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
        return _both(model, replica, factors.split(own), share)

    client = algorithm.Client(
        lambda model, replica, key: Copy(factors.join(factors.split(replica)), jnp.array(False)),
        update,
    )
    return base._replace(client=client, deploy=deploy)


def _both(model, replica, own, share):
    wide, both = factors.concatenate(model, factors.split(replica), own, share)
    return wide, factors.join(both)


def _check(share: float) -> None:
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}; 0 is the shared adapter alone")
