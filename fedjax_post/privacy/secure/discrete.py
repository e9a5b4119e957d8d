"""Noise on integers: the discrete Gaussian, which every client adds to its codes.

Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
arXiv:2004.00010, algorithms 2 and 3: P(x) is proportional to exp(-x^2 / (2 sigma^2)). A discrete
Laplace number is drawn from whole numbers, and kept with a probability that corrects its form.

Deviation: probabilities are compared in float32, so each is correct to about 2^-23. No integer is
left out, unlike in a rounded float32 normal. Whoever knows the seed knows the noise.
"""

from typing import Any

import jax
import jax.numpy as jnp


def discrete_gaussian(key: jax.Array, sigma: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns independent discrete Gaussian numbers, int32 of `shape`.

    Args:
      key: of the draw.
      sigma: parameter in (0, 2^24), (); the deviation is at most this.
      shape: of the result.
    """
    sigma = jnp.asarray(sigma, jnp.float32)
    scale = jnp.floor(sigma).astype(jnp.int32) + 1  # t, of the discrete Laplace distribution

    def propose(key):
        low_key, keep_key, high_key, sign_key, form_key = jax.random.split(key, 5)
        uniform = lambda key: jax.random.uniform(key, shape)
        low = jax.random.randint(low_key, shape, 0, scale)
        kept = uniform(keep_key) < jnp.exp(-low / scale)
        # Geometric: the whole part of an exponential number
        high = jnp.floor(jax.random.exponential(high_key, shape)).astype(jnp.int32)
        size = low + scale * high
        negative = jax.random.bernoulli(sign_key, shape=shape)
        kept &= ~(negative & (size == 0))  # zero would count twice
        gap = (size - sigma**2 / scale) / sigma
        kept &= uniform(form_key) < jnp.exp(-(gap**2) / 2)
        return jnp.where(negative, -size, size), kept

    def draw(state):
        key, drawn, missing = state
        key, now = jax.random.split(key)
        proposed, kept = propose(now)
        return key, jnp.where(missing & kept, proposed, drawn), missing & ~kept

    start = key, jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
    return jax.lax.while_loop(lambda state: state[2].any(), draw, start)[1]
