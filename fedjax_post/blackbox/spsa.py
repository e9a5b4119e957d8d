"""SPSA: a gradient estimated from a few differences, all parameters perturbed at once.

Spall, "Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient
Approximation", IEEE Transactions on Automatic Control, 1992. With entries v_i of random sign:

    g_i = mean over some v of (f(x + c v) - f(x - c v)) / (2 c v_i)
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.algorithm import mean_of
from fedjax_post.core.forward import central_difference, from_estimate
from fedjax_post.core.world import LossFn


def spsa(loss_fn: LossFn, radius: float | jax.Array, *, num_directions: int) -> LossFn:
    """Returns a loss function whose gradient is SPSA's estimate of that of `loss_fn`.

    Differences are taken one after another. |v_i| is uniform in [1/2, 1].

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      radius: c, positive.
      num_directions: differences that are averaged, at least 1; each asks twice.
    """
    slope_fn = central_difference(loss_fn, radius)

    def estimate(params, model, batch, key):
        loss_key, *keys = jax.random.split(key, num_directions + 1)

        def probe(v_key):
            v = optax.tree.random_like(v_key, params, sampler=_segmented_uniform)
            slope, metrics = slope_fn(params, v, model, batch, loss_key)
            return jax.tree.map(lambda v: slope / v, v), metrics

        estimates, metrics = jax.lax.map(probe, jnp.stack(keys))
        mean = jax.tree.map(lambda x: x.mean(0), estimates)
        total = jax.tree.map(lambda x: x.sum(0), metrics)
        return mean, mean_of(total, num_directions)

    return from_estimate(estimate)


def _segmented_uniform(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Numbers of random sign and a size uniform in [1/2, 1], whose inverses have a variance."""
    size_key, sign_key = jax.random.split(key)
    sizes = jax.random.uniform(size_key, shape, dtype, 0.5, 1.0)
    return sizes * jax.random.rademacher(sign_key, shape, dtype)
