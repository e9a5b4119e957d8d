"""HetLoRA: clients of different ranks, zero-padded, weighted by the norm of their products.

Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation
Models", EMNLP 2024, arXiv:2401.06432.

    A <- sum p_k pad(A_k),  B <- sum p_k pad(B_k),  p_k ~ |A_k B_k|;  client k holds the first r_k
    local loss + prune_penalty T,  T = sum over matrices |A_k[:, t:]| |B_k[t:]|,  t = prune_to r_k
    r_k <- t if a visit made T smaller

This is recalled, not checked: there is no authors' code, and the paper's text was not available.
It was compared with third parties' code, one whole aggregation and excerpts of a regulariser:
they agree on the sum in T and on one p_k for all adapted matrices.

Deviations: p_k is also multiplied by `weigh_fn`, which is `uniformly` for the paper.
The paper's norm ignores alpha / r; here B carries it, so that the norm of a product is that of
its effect on the model. An adapter that is still zero is never pruned.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters import factors, products
from fedjax_post.core import aggregates, algorithm, local, servers, world


def het_lora(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    sparsity_weights: bool = True,
    prune_to: float = 1.0,
    prune_penalty: float = 0.0,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Zero-padded averaging of factors of different ranks.

    Without `sparsity_weights` and pruning it is FedIT (Zhang et al. 2024,
    arXiv:2305.05644) for unequal ranks, and with equal ranks `fed_avg`. A round sends
    both factors down and both up, the components of the rank that the client has at
    the start of the visit. Clients keep one number.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      sparsity_weights: multiply the weight of a client by the norm of its product.
      prune_to: share of its rank that a client keeps when it prunes, in (0, 1]; 1: never.
      prune_penalty: penalty on the components that pruning would remove, not negative.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `Factors`. A client's state is the largest rank that pruning
      allows it, int32.

    Raises:
      ValueError: if `prune_to` or `prune_penalty` is out of range; at the start of a
        run, if anything but an adapter is to be trained.
    """
    if isinstance(prune_to, int | float) and not 0 < prune_to <= 1:
        raise ValueError(f"prune_to must be in (0, 1], got {prune_to}; 1 never prunes")
    if isinstance(prune_penalty, int | float) and prune_penalty < 0:
        raise ValueError(f"prune_penalty must not be negative, got {prune_penalty}")

    def update(model, replica, limit, data, ctx):
        rank = jnp.minimum(factors.own_rank(data.rank, factors.rank_of(replica)), limit)
        bill = factors.bill_by_rank(replica, replica, rank)
        tail = jnp.maximum(jnp.floor(prune_to * rank + 1e-4).astype(jnp.int32), 1)

        def loss(params, model, batch, key):
            value, metrics = loss_fn(params, model, batch, key)
            return value + prune_penalty * _tail(factors.split(params), tail), metrics

        penalized = loss if prune_to < 1 and prune_penalty > 0 else loss_fn
        at_rank = data._replace(rank=rank)
        start, end, metrics = factors.train(penalized, client_tx, replica, model, at_rank, ctx)
        rank = jnp.where(_tail(end, tail) < _tail(start, tail), tail, rank)
        end = factors.first_components(end, rank)
        norm = products.frobenius_norm(end) if sparsity_weights else 1
        return algorithm.Upload(end, weigh_fn(data) * norm, bill), rank, metrics

    return algorithm.Algorithm(
        client=algorithm.Client(
            lambda model, replica, key: jnp.int32(factors.rank_of(replica)), update
        ),
        server=servers.keep_latest(),
        aggregate=aggregates.weighted_mean(),
        init=factors.split,
        deploy=factors.deploy,
        read=factors.read_end,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.SCALE),
            "clients send their factors, not a change of them",
        ),
        ranked=True,
    )


def _tail(held: factors.Factors, start: jax.Array) -> jax.Array:
    """T: sum over matrices of |A[:, start:]| |B[start:]|; its gradient is 0 where a norm is."""
    rest = optax.tree.sub(held, factors.first_components(held, start))
    squares = jax.tree.map(lambda x: jnp.square(x).sum((1, 2)), rest)  # [num_layers] each
    norms = jax.tree.map(lambda s: jnp.sqrt(jnp.where(s > 0, s, 1)) * (s > 0), squares)
    return optax.tree.vdot(*norms)
