"""FedKSeed: full-parameter tuning for a few kilobytes a round.

Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with
Communication Cost under 18 Kilobytes", ICML 2024, arXiv:2312.06353, Algorithm 1. All
directions z_j come from a pool of K seeds. A local step draws j and moves

    y <- y - eta s z_j,    s = (f(y + eps z_j) - f(y - eps z_j)) / (2 eps)

so that K sums of eta s, one for each seed, describe all that a client did. The server adds their
means to its own K sums, and everybody rebuilds the model from the first one:

    x = x_0 - sum_j (sum of eta s)_j z_j

which is the mean of the clients' models, weighted by the clients' weights. Deviations: none from
FedKSeed; the seeds are drawn uniformly (`fed_k_seed_pro` draws them otherwise).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.blackbox.directions import pool_direction
from fedjax_post.blackbox.walks import Walk, move_along, slope_estimate
from fedjax_post.core import access, aggregates, algorithm, forward, local, world


class Shared(NamedTuple):
    """What the server holds; only the sums are sent."""

    start: algorithm.PyTree  # x_0, set up with the model
    sums: jax.Array  # [num_seeds], float32: of -eta s


class Replica(NamedTuple):
    """What every client holds."""

    start: algorithm.PyTree  # x_0
    params: algorithm.PyTree  # x, rebuilt


def fed_k_seed(
    loss_fn: world.LossFn,
    learning_rate: world.LearningRate,
    *,
    num_seeds: int = 1024,
    epsilon: float = 5e-4,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Gradient-free tuning that sends one number for each seed of a pool.

    To rebuild the model, a round draws `num_seeds` trees like the parameters, once for all clients.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      learning_rate: local step size, or a function from the round to it.
      num_seeds: K, the directions in the pool, at least 1.
      epsilon: half the distance between the two points, in units of a direction.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that needs WEIGHTS and sends 4 K bytes each way, however many
      parameters there are; a client that joins late misses nothing. Clients keep no state.

    Raises:
      ValueError: if `num_seeds` is not positive.
    """
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate
    tx = optax.chain(optax.sgd(1.0), local.scale_by_round(schedule))
    slope_fn = forward.central_difference(loss_fn, epsilon)

    def estimate(walk, model, batch, key):
        seed_key, loss_key = jax.random.split(key)
        seed = jax.random.randint(seed_key, (), 0, num_seeds)
        z = pool_direction(seed, walk.params)
        slope, metrics = slope_fn(walk.params, z, model, batch, loss_key)
        return slope_estimate(walk, seed, slope, z), metrics

    def update(model, replica, state, data, ctx):
        walk, loss = Walk(replica.params, jnp.zeros(num_seeds)), forward.from_estimate(estimate)
        end, _, metrics = local.local_steps(loss, tx, walk, model, data, ctx)
        return algorithm.Upload(end.sums, weigh_fn(data)), state, metrics

    def receive(sums, replica):
        return replica._replace(params=move_along(replica.start, sums, pool_direction))

    serve = lambda mean, state, shared: (shared._replace(sums=shared.sums + mean), state)
    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.Downlink(
            lambda shared: Replica(shared.start, shared.start), lambda s: s.sums, receive
        ),
        init=lambda params: Shared(params, jnp.zeros(num_seeds)),
        deploy=lambda model, replica, state=None: (model, replica.params),
        access={"target": access.Access.WEIGHTS},
        value_like=lambda shared: shared.sums,
        refuses={
            algorithm.Around.RULE: "each client draws its own few seeds: a median is mostly zero"
        },
    )
