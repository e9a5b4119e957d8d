"""On-policy training: clients learn from what the model that they hold answers.

A federation of any algorithm, in which a visit's data are made by the model: the client acts
with what it would serve, then trains on what came of it. With `objectives.grpo.rollouts` and
`grpo_loss` it is GRPO on every client (Shao et al. 2024, arXiv:2402.03300), the rule of the
algorithm below between them. All of it is one compiled program; nothing leaves the client but
what the algorithm sends.
"""

from collections.abc import Callable

import jax

from fedjax_post.core import algorithm


def on_policy(base: algorithm.Algorithm, rollout: Callable) -> algorithm.Algorithm:
    """Any algorithm, its clients acting at the start of a visit and training on the outcome.

    What the algorithm shares, sends and is charged for is untouched. With a rollout that hands
    the data back it is the algorithm itself, on other keys.

    Args:
      base: the algorithm, given a loss of what `rollout` makes.
      rollout: `(model, params, data, key) -> (data, metrics)`, of one client; the data have as
        many steps as before.

    Returns:
      An algorithm whose clients act as `base.deploy` has it: with the shared model, or with
      their own where they keep one.
    """

    def update(model, replica, state, data, ctx):
        key, acting_key = jax.random.split(ctx.key)
        acting = base.deploy(model, replica, state)
        data, told = rollout(*acting, data, acting_key)
        upload, state, metrics = base.client.update(
            model, replica, state, data, ctx._replace(key=key)
        )
        return upload, state, {**metrics, **told}

    return base._replace(client=algorithm.Client(base.client.init, update))
