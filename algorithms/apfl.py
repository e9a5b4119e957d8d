"""APFL: every client uses a mixture of the shared model and its own.

Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020,
arXiv:2003.13461, Algorithm 1. At each local step, client k with w_k (its copy of the
shared model), v_k (its own) and a_k in [0, 1]:

    m   = a_k v_k + (1 - a_k) w_k
    w_k <- w_k - eta grad f_k(w_k)
    v_k <- v_k - eta grad_v f_k(m)           = eta a_k grad f_k(m)
    a_k <- a_k - eta_a <v_k - w_k, grad f_k(m)>,  clipped to [0, 1]

and w is averaged as in FedAvg.

Deviations: v_k starts from w as client k receives it at its first visit, which is the first
model only for those that take part in the first round; a_k changes at every step; any local
optimizer may take the steps of w_k and v_k, each with a state of its own. Public codes differ
from the equations and from one another: FedJAX leaves a_k out of the step of v_k, and keeps
one share for each tensor; FedRep's authors mix a_k v_k + a_k w_k, whose weights do not sum to
1, and use one momentum for the steps of w_k and v_k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


class Trio(NamedTuple):
    """What a client trains; also the labels of its three optimizers."""

    shared: algorithm.PyTree  # w_k
    own: algorithm.PyTree  # v_k
    share: algorithm.PyTree  # a_k: (), float32


class Held(NamedTuple):
    """What a client keeps."""

    own: algorithm.PyTree  # v_k
    share: jax.Array  # a_k: (), float32


def apfl(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    own_share: float = 0.5,
    share_lr: float = 0.01,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging, and for each client an adaptive mixture of it with an own model.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer of both models, fresh at every visit.
      own_share: first share of its own model in every client's mixture, in [0, 1].
      share_lr: step size of the shares; 0 keeps them constant.
      server_tx: as in `fed_avg`.
      weigh_fn: as in `fed_avg`.

    Returns:
      An algorithm at FedAvg's communication cost, whose clients keep one tree like the
      parameters and a number. Deployed with a client's state it is that client's mixture.

    Raises:
      ValueError: if `own_share` is outside [0, 1].
    """
    if isinstance(own_share, int | float) and not 0 <= own_share <= 1:
        raise ValueError(f"own_share must be in [0, 1], got {own_share}")
    share_tx = optax.chain(optax.sgd(share_lr), _clip_to_unit())
    txs = {"shared": client_tx, "own": client_tx, "share": share_tx}
    tx = optax.partition(txs, lambda _: Trio("shared", "own", "share"))

    def both(trio, *args):
        loss, metrics = loss_fn(trio.shared, *args)
        mixture = _mix(trio.own, jax.lax.stop_gradient(trio.shared), trio.share)
        own_loss, own_metrics = loss_fn(mixture, *args)
        own_metrics = {f"personal_{name}": metric for name, metric in own_metrics.items()}
        return loss + own_loss, {**metrics, **own_metrics}

    def update(model, replica, state, data, ctx):
        trio = Trio(replica, *state)
        end, _, metrics = local.local_steps(both, tx, trio, model, data, ctx)
        upload = algorithm.Upload(optax.tree.sub(end.shared, replica), weigh_fn(data))
        return upload, Held(end.own, end.share), metrics

    def deploy(model, replica, state=None):
        return model, replica if state is None else _mix(state.own, replica, state.share)

    return algorithm.Algorithm(
        client=algorithm.Client(lambda _, w, key: Held(w, jnp.float32(own_share)), update),
        server=servers.server_optimizer(server_tx or optax.sgd(1.0)),
        aggregate=aggregates.weighted_mean(),
        read=algorithm.as_change,
        deploy=deploy,
    )


def _mix(own, shared, share):
    return jax.tree.map(lambda v, w: share * v + (1 - share) * w, own, shared)


def _clip_to_unit() -> optax.GradientTransformation:
    """Shortens updates so that the parameters stay in [0, 1]."""

    def update(updates, state, params):
        shorten = lambda u, p: jnp.clip(p + u, 0.0, 1.0) - p
        return jax.tree.map(shorten, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)
