"""Local differential privacy: every client adds noise to its upload before it sends it.

The noise comes right after the clip and before all other links, so what these do, error feedback
included, is post-processing. So is everything on the server, robust rules included.

| case | treatment and reason |
| --- | --- |
| the weight of a client | 1, since it would show how many rows or tokens it has |
| a value that is not finite | the client is dropped from the round, which the server sees |
| which clients take part, and when | known to the server, and not hidden |
| a value contains integers | refused: clipping does not bound them |
| the method works through the clients' weights, or divides by a mean of values | refused |

As in `privacy.noise`, float32 noise from a known seed is for research, not for deployment.
"""

import math
from typing import Any

import jax.numpy as jnp

from fedjax_post.core.algorithm import Algorithm, Around, Client, Uplink
from fedjax_post.core.compose import check_may
from fedjax_post.core.uplinks import chain, clip, no_state
from fedjax_post.privacy.noise import add_normal, check_numbers, floats_only


def private_uploads(base: Algorithm, *, clip_norm: float, noise_multiplier: float) -> Algorithm:
    """Returns the algorithm with differential privacy of each client's uploads, from everyone.

    With noise 0 and a clip that changes nothing, it is the algorithm with clients of equal
    weight. `privacy.accounts.uploads` is its account.

    >>> import optax
    >>> from fedjax_post.algorithms.fed_avg import fed_avg
    >>> base = fed_avg(lambda params, model, batch, key: (0.0, {}), optax.sgd(0.1))
    >>> algorithm = private_uploads(base, clip_norm=1.0, noise_multiplier=20.0)

    Args:
      base: the algorithm, with its links.
      clip_norm: largest norm of a client's whole value, over all its leaves.
      noise_multiplier: standard deviation of the noise on each coordinate of an upload, divided
        by `clip_norm`.

    Returns:
      An algorithm with the same messages and bytes. The noise depends on the run's seed.

    Raises:
      ValueError: if a number is out of range, or the algorithm cannot be made private this way.
    """
    check_numbers(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    for what in (Around.LINK, Around.EQUAL, Around.SCALE, Around.NOISE):
        check_may(base, what, "noise on uploads")
    if base.uplink.first:
        raise ValueError("private_uploads adds a clip of its own; leave clip out of the links")
    link = chain(clip(clip_norm), _noised(noise_multiplier * clip_norm), base.uplink)

    def update(model, replica, state, data, ctx):
        upload, state, metrics = base.client.update(model, replica, state, data, ctx)
        return upload._replace(weight=jnp.ones((), jnp.float32)), state, metrics

    return base._replace(
        client=Client(base.client.init, update),
        uplink=floats_only(link, "noise on uploads"),
        refuses={**base.refuses, Around.LINK: "its links begin with noise of the client"},
    )


def _noised(deviation: Any) -> Uplink:
    """Returns a link that adds independent normal numbers of some deviation; it has no bound."""

    def encode(value, replica, state, ctx):
        del replica
        return add_normal(value, deviation, ctx.key), state

    return Uplink(no_state, encode, lambda message, like: message, lambda norm: math.inf)
