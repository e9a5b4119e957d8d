"""RoLoRA: trains and averages one factor in each round, B first, then A.

Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of
LoRA", NeurIPS 2025, arXiv:2502.01755 (first form arXiv:2409.02346), section 3.

    rounds 0, 2, ..:  B <- B + sum p_k (B_k - B), A frozen
    rounds 1, 3, ..:  A <- A + sum p_k (A_k - A), B frozen

All clients have one factor in common in every round, so that averaging never has an error. B
comes first: while it is zero, A has no gradient.

Deviations: clients of rank r train the first r components under alpha / r, the rest
does not change. The paper counts rounds from 1, and freezes A in the odd ones, as two
readers of its text report: they are the even ones here.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters import factors
from fedjax_post.core import aggregates, algorithm, local, servers, wire, world


def ro_lora(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of one factor at a time, by the parity of the round.

    A round sends one factor up. A client that took part in the last round is sent the
    factor that changed in it, any other client both. Clients keep one number.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; it receives zero as the frozen factor's gradient.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `Factors`. A client's state is 1 + the round of its last visit.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """
    tx = optax.chain(_alternate(), client_tx, _alternate())

    def update(model, replica, last, data, ctx):
        start, end, metrics = factors.train(loss_fn, tx, replica, model, data, ctx)
        upload = algorithm.Upload(
            optax.tree.sub(end, start), weigh_fn(data), _bill(replica, last, data, ctx)
        )
        return upload, ctx.round + 1, metrics

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: jnp.int32(0), update),
        server=servers.server_optimizer(optax.sgd(1.0)),
        aggregate=aggregates.weighted_mean(),
        init=factors.split,
        deploy=factors.deploy,
        read=algorithm.as_change,
        refuses={
            algorithm.Around.MEMORY: "what a link lost of one factor comes in the other's round"
        },
        ranked=True,
    )


def _is_turn_of_b(round):
    return round % 2 == 0


def _bill(replica, last, data, ctx):
    """One factor up; down the one that changed, or both for a client that missed a round."""
    num = factors.own_rank(data.rank, factors.rank_of(replica))
    a = factors.component_bytes(replica._replace(b=None))
    b = factors.component_bytes(replica._replace(a=None))
    is_b, is_late = _is_turn_of_b(ctx.round), (last == 0) | (last < ctx.round)
    if_so = lambda flag: jnp.where(flag, num, 0)
    return algorithm.Bill(
        down=wire.pieces((a, if_so(is_late | is_b)), (b, if_so(is_late | ~is_b))),
        up=wire.pieces((a, if_so(~is_b)), (b, if_so(is_b)), (4, jnp.int32(1))),
    )


def _alternate() -> optax.GradientTransformationExtraArgs:
    """Sets the updates of the factor that is frozen in this round to zero."""

    def update(updates, state, params=None, *, round, **_):
        zero = lambda tree, keep: jax.tree.map(lambda x: jnp.where(keep, x, 0), tree)
        is_b = _is_turn_of_b(round)
        return factors.Factors(zero(updates.a, ~is_b), zero(updates.b, is_b)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
