"""RoLoRA: the factors take turns, B in one round, A in the next.

Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of
LoRA", NeurIPS 2025, arXiv:2409.02346.

    rounds 0, 2, ..:  B <- B + sum p_k (B_k - B), A frozen
    rounds 1, 3, ..:  A <- A + sum p_k (A_k - A), B frozen

One factor is common in every round, so that averaging never has an error. B comes
first: while it is zero, A has no gradient.

Deviations: clients of rank r train the first r components under alpha / r, the rest
stays put. The paper counts rounds from 1; its odd rounds are our even ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters import factors
from fedjax_post.core import aggregates, algorithm, local, servers, wire


def ro_lora(
    loss_fn: local.LossFn,
    client_tx: optax.GradientTransformation,
    *,
    weigh_fn: Callable = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of one factor at a time, by the parity of the round.

    A round sends one factor up. A client that was there in the last round is sent the
    factor that moved in it, any other client both. Clients keep one number.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; the frozen factor's gradient reaches it as zero.
      weigh_fn: `(ClientData) -> ()`, how much a client counts.

    Returns:
      An algorithm that shares `Factors`. A client's state is 1 + the round of its last visit.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """
    tx = optax.chain(_by_turns(), client_tx, _by_turns())

    def update(model, replica, last, data, ctx):
        start, end, metrics = factors.train(loss_fn, tx, replica, model, data, ctx)
        change = optax.tree.sub(end, start)
        return algorithm.Upload(change, weigh_fn(data)), ctx.round + 1, metrics

    def bill(replica, last, data, ctx):
        num = factors.own_rank(data.rank, factors.rank_of(replica))
        sizes = [factors.component_bytes(replica._replace(**{other: None})) for other in ("b", "a")]
        was_here = (last > 0) & (last == ctx.round)
        sent = [~was_here | ~_is_turn_of_b(ctx.round - 1), ~was_here | _is_turn_of_b(ctx.round - 1)]
        moved = [~_is_turn_of_b(ctx.round), _is_turn_of_b(ctx.round)]
        count = lambda size, flag: (size, jnp.where(flag, num, 0))
        return algorithm.Bill(
            wire.pieces(*map(count, sizes, sent)),
            wire.pieces(*map(count, sizes, moved), (4, jnp.int32(1))),
        )

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: jnp.int32(0), update),
        server=servers.server_optimizer(optax.sgd(1.0)),
        aggregate=aggregates.weighted_mean(),
        init=factors.split,
        deploy=factors.deploy,
        bill=bill,
    )


def _is_turn_of_b(round):
    return round % 2 == 0


def _by_turns() -> optax.GradientTransformationExtraArgs:
    """Zeroes what belongs to the factor whose turn it is not."""

    def update(updates, state, params=None, *, round, **_):
        zero = lambda tree, kept: jax.tree.map(lambda x: jnp.where(kept, x, 0), tree)
        is_b = _is_turn_of_b(round)
        return factors.Factors(zero(updates.a, ~is_b), zero(updates.b, is_b)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
