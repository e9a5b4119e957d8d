"""q-FedAvg: clients with a larger loss have a larger weight.

Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020,
arXiv:1905.10497, Algorithm 2, for the objective sum_k F_k(w)^(q+1) / (q+1). With L the
inverse of the local step size and w_k where the local steps end:

    d_k = L (w - w_k),                  D_k = F_k(w)^q d_k
    h_k = q F_k(w)^(q-1) |d_k|^2 + L F_k(w)^q
    w  <- w - sum_k D_k / sum_k h_k

Deviations: F_k(w) is the mean loss over the batches of the visit, not all of the
client's data; 1e-10 is added to it, as in the authors' code, so that no loss is zero.
Clients have equal weights, where the paper samples them by size. The rest agrees with the
authors' code to the last digit. Noise cannot be added: the step divides by the sum of the h_k,
which noise large enough to hide a client's D_k may bring near zero, or below.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, world


class Fair(NamedTuple):
    """What a client sends."""

    change: algorithm.PyTree  # D_k
    curvature: jax.Array  # h_k: (), float32


def q_fed_avg(
    loss_fn: world.LossFn, learning_rate: world.LearningRate, *, q: float = 1.0
) -> algorithm.Algorithm:
    """Federated averaging that accepts a larger mean loss for more equal losses.

    With q = 0 it is FedAvg with equal weights. The local optimizer is plain SGD, since
    L is the inverse of its step size.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, not negative.
      learning_rate: local step size, or a function from the round to it.
      q: weight of fairness, not negative.

    Returns:
      An algorithm that shares the parameters themselves. A round sends one copy of them down,
      and one copy and a number up; each visit evaluates its batches once more.

    Raises:
      ValueError: if `q` is negative.
    """
    if isinstance(q, int | float) and q < 0:
        raise ValueError(f"q must not be negative, got {q}; 0 is FedAvg")
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate
    tx = optax.chain(optax.sgd(1.0), local.scale_by_round(schedule))

    def update(model, w, state, data, ctx):
        w_k, _, metrics = local.local_steps(loss_fn, tx, w, model, data, ctx)
        loss = local.mean_over_steps(lambda *args: loss_fn(w, model, *args)[0], data, ctx) + 1e-10
        inverse = 1 / schedule(ctx.round)
        d_k = optax.tree.scale(inverse, optax.tree.sub(w, w_k))
        steepness = q * loss ** (q - 1) * optax.tree.norm(d_k, squared=True)
        value = Fair(optax.tree.scale(loss**q, d_k), steepness + inverse * loss**q)
        return algorithm.Upload(value, local.uniformly(data)), state, metrics

    def serve(mean, state, w):
        return optax.tree.add_scale(w, -1 / mean.curvature, mean.change), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        value_like=lambda shared: Fair(shared, jnp.zeros(())),
        refuses={
            algorithm.Around.RULE: "clients with a larger loss send larger values, and a robust "
            "rule leaves them out",
            algorithm.Around.NOISE: "its server divides by a sum over clients, which noise may "
            "bring near zero",
        },
    )
