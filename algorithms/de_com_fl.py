"""DeComFL: a few numbers a round, whatever the size of the model.

Li et al., "Achieving Dimension-Free Communication in Federated Learning via
Zeroth-Order Optimization", ICLR 2025, arXiv:2405.15861, Algorithm 2. In a round all
clients walk along the same directions z_1 ... z_K, one for each local step, that both
ends draw from a seed:

    y <- y - eta s_i z_i,    s_i = (f(y + eps z_i) - f(y - eps z_i)) / (2 eps)

They send the K slopes, the server their means; with these and the seed every client
steps to the mean model, x <- x - eta sum_i s_i z_i.

The authors' code, given the same directions, takes the same steps.

Deviations: a central difference, where the paper's is forward; one direction a step
(P = 1); clients are weighted by `weigh_fn`. The seeds are the numbers of the round and of the
step, so that they need not be sent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.blackbox.directions import step_direction
from fedjax_post.blackbox.walks import Walk, move_along, slope_estimate
from fedjax_post.core import access, aggregates, algorithm, forward, local, wire, world


class Sent(NamedTuple):
    """What goes down."""

    slopes: jax.Array  # [num_slopes], float32: of -eta s, means of the last round
    served: jax.Array  # (), int32: rounds so far, the last one included


class Shared(NamedTuple):
    """What the server holds; it never forms the model."""

    start: algorithm.PyTree  # the first parameters, set up with the model
    sent: Sent


class Replica(NamedTuple):
    """What every client holds."""

    params: algorithm.PyTree
    served: jax.Array  # (), int32: rounds that `params` include


def de_com_fl(
    loss_fn: world.LossFn,
    learning_rate: world.LearningRate,
    *,
    num_slopes: int = 8,
    epsilon: float = 1e-3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Gradient-free tuning that sends one number for each local step.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      learning_rate: local step size, or a function from the round to it.
      num_slopes: K, numbers in a message: the most local steps that a visit may have.
      epsilon: half the distance between the two points, in units of a direction.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that needs WEIGHTS and sends 4 K bytes up and as many down for each
      round since the client's last visit, which is the client's state and is billed.

    Raises:
      ValueError: at the first visit, if it has more than `num_slopes` steps.
    """
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate
    tx = optax.chain(optax.sgd(1.0), local.scale_by_round(schedule))
    slope_fn = forward.central_difference(loss_fn, epsilon)

    def update(model, replica, seen, data, ctx):
        steps = jnp.arange(data.step_mask.shape[0])
        if len(steps) > num_slopes:
            raise ValueError(f"a visit has {len(steps)} steps; raise num_slopes={num_slopes}")

        def estimate(walk, model, numbered, key):
            batch, step = numbered
            z = step_direction(replica.served, step, walk.params)
            slope, metrics = slope_fn(walk.params, z, model, batch, key)
            return slope_estimate(walk, step, slope, z), metrics

        walk, loss = Walk(replica.params, jnp.zeros(num_slopes)), forward.from_estimate(estimate)
        data = data._replace(batches=(data.batches, steps))
        end, _, metrics = local.local_steps(loss, tx, walk, model, data, ctx)
        missed = wire.pieces((4 * num_slopes, replica.served - seen), (4, jnp.int32(1)))
        bill = algorithm.Bill(missed, wire.pieces((4 * num_slopes + 4, jnp.int32(1))))
        return algorithm.Upload(end.sums, weigh_fn(data), bill), replica.served, metrics

    def receive(sent, replica):
        new = sent.served > replica.served  # once only, though a round may be sent again
        slopes = jnp.where(new, sent.slopes, 0)
        direction = lambda i, like: step_direction(sent.served - 1, i, like)
        return Replica(move_along(replica.params, slopes, direction), sent.served)

    serve = lambda mean, state, s: (s._replace(sent=Sent(mean, s.sent.served + 1)), state)
    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: jnp.int32(0), update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.Downlink(
            lambda shared: Replica(shared.start, shared.sent.served), lambda s: s.sent, receive
        ),
        init=lambda params: Shared(params, Sent(jnp.zeros(num_slopes), jnp.int32(0))),
        deploy=lambda model, replica, state=None: (model, replica.params),
        access={"target": access.Access.WEIGHTS},
        value_like=lambda shared: shared.sent.slopes,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.STALE),
            "the slopes of a round belong to its own directions",
        ),
    )
