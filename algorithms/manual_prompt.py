"""The manual prompt: used as it was written; nothing is learned and the model is not asked.

The baseline of every search for a better one (as in Diao et al., TMLR 2023,
arXiv:2201.08531, and Sun et al., ICML 2024, arXiv:2310.01467).
"""

import jax.numpy as jnp

from fedjax_post.core import access, aggregates, algorithm, world


def manual_prompt(loss_fn: world.LossFn) -> algorithm.Algorithm:
    """Shares a prompt and never changes it.

    Args:
      loss_fn: never called.

    Returns:
      An algorithm that sends nothing and keeps nothing. It declares TEXT, which serving needs.
    """
    del loss_fn

    def update(model, replica, state, data, ctx):
        return algorithm.Upload((), jnp.float32(1)), state, {}

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.idle(),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.nothing(),
        access={"target": access.Access.TEXT},
        value_like=lambda shared: (),
        refuses=dict.fromkeys(algorithm.Around, "nothing is sent"),
    )
