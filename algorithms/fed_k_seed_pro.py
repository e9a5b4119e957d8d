"""FedKSeed-Pro: FedKSeed that draws a seed the more often, the more it moves the loss.

Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with
Communication Cost under 18 Kilobytes", ICML 2024, arXiv:2312.06353, FedKSeed-Pro. With
s the slopes that all clients ever measured along z_j, as in `fed_k_seed`:

    m_j = mean of min(|s|, clip),    p = softmax((m - min m) / (max m - min m))

and a local step draws seed j with probability p_j. So no seed is more than e times as
likely as another.

Deviations: clients are weighted by `weigh_fn` in m_j, too; a seed that nobody drew has m_j = 0,
where the authors' code starts every seed with one slope of zero. m is sent down, and the client
computes p. The paper sends a pair up for each local step; here the sums are sent, whose size
depends on K alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.algorithms.fed_k_seed import Replica, fed_k_seed
from fedjax_post.blackbox.directions import pool_direction
from fedjax_post.blackbox.seed_pool import Tally, draw_logits, empty_tally, mean_sizes
from fedjax_post.blackbox.walks import Walk
from fedjax_post.core import algorithm, forward, local, world


class Shared(NamedTuple):
    """What the server holds."""

    start: algorithm.PyTree  # x_0, set up with the model
    tally: Tally


class Sent(NamedTuple):
    """What goes down, `[num_seeds]`, float32."""

    sums: jax.Array
    slopes: jax.Array  # m_j


class Held(NamedTuple):
    """What every client holds."""

    rebuilt: Replica
    slopes: jax.Array  # [num_seeds], float32: m_j


def fed_k_seed_pro(
    loss_fn: world.LossFn,
    learning_rate: world.LearningRate,
    *,
    num_seeds: int = 1024,
    epsilon: float = 5e-4,
    slope_clip: float = 1e3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedKSeed that prefers the directions along which the loss changes.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      learning_rate: local step size, or a function from the round to it.
      num_seeds: K, the directions in the pool, at least 1.
      epsilon: half the distance between the two points, in units of a direction.
      slope_clip: a slope counts for no more than this in the draw, positive.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that needs WEIGHTS and sends 8 K bytes down and 12 K up, however many
      parameters there are; a client that joins late misses nothing. Clients keep no state.

    Raises:
      ValueError: if `num_seeds` or `slope_clip` is not positive.
    """
    if isinstance(slope_clip, int | float) and not slope_clip > 0:
        raise ValueError(f"slope_clip must be positive, got {slope_clip}; inf clips nothing")
    base = fed_k_seed(loss_fn, learning_rate, num_seeds=num_seeds, epsilon=epsilon)
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate
    slope_fn = forward.central_difference(loss_fn, epsilon)

    def update(model, replica, state, data, ctx):
        logits = draw_logits(replica.slopes)

        def step(walk, batch, key):
            seed_key, loss_key = jax.random.split(key)
            seed = jax.random.categorical(seed_key, logits)
            z = pool_direction(seed, walk.params)
            slope, metrics = slope_fn(walk.params, z, model, batch, loss_key)
            move, size = -schedule(ctx.round) * slope, jnp.minimum(jnp.abs(slope), slope_clip)
            at = lambda sums, x: sums.at[seed].add(x)
            tally = Tally(*map(at, walk.sums, (move, size, 1.0)))
            return Walk(optax.tree.add_scale(walk.params, move, z), tally), metrics

        walk = Walk(replica.rebuilt.params, empty_tally(num_seeds))
        end, totals = local.over_steps(step, walk, data, ctx)
        steps = jnp.maximum(jnp.asarray(data.step_mask).sum(), 1)
        upload = algorithm.Upload(end.sums, weigh_fn(data))
        return upload, state, jax.tree.map(lambda m: m / steps, totals)

    serve = lambda mean, s, shared: (shared._replace(tally=optax.tree.add(shared.tally, mean)), s)
    receive = lambda m, r: Held(base.downlink.receive(m.sums, r.rebuilt), m.slopes)
    first = lambda s: Held(Replica(s.start, s.start), jnp.zeros(num_seeds))
    encode = lambda s: Sent(s.tally.sums, mean_sizes(s.tally))
    return base._replace(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        downlink=algorithm.Downlink(first, encode, receive),
        init=lambda params: Shared(params, empty_tally(num_seeds)),
        deploy=lambda model, replica, state=None: (model, replica.rebuilt.params),
        value_like=lambda shared: shared.tally,
        refuses={
            **base.refuses,
            algorithm.Around.NOISE: "it draws seeds by quotients of sums, which noise makes "
            "arbitrary; use fed_k_seed",
        },
    )
