"""On-policy training: clients learn from the answers of the model that they hold.

For a federation of any algorithm, in which the model makes the data of a visit: the client
generates with the model that it would serve, then trains on the outcome. With
`objectives.grpo.rollouts` and `grpo_loss` it is GRPO on every client (Shao et al. 2024,
arXiv:2402.03300), combined across clients by the algorithm. A visit is one compiled program; only
what the algorithm sends leaves the client.
"""

from collections.abc import Callable

import jax

from fedjax_post.core import algorithm


def on_policy(base: algorithm.Algorithm, rollout: Callable) -> algorithm.Algorithm:
    """Makes the clients of any algorithm generate at the start of a visit and train on the outcome.

    What the algorithm shares, sends and is charged for does not change. With a rollout that
    returns the data unchanged it is the algorithm itself, with other random keys.

    Args:
      base: the algorithm, made with a loss of what `rollout` returns.
      rollout: `(model, params, data, key) -> (data, metrics)`, for one client; the number of
        steps in the data must not change.

    Returns:
      An algorithm whose clients generate with what `base.deploy` returns: the shared model, or
      their own where they keep one.
    """

    def update(model, replica, state, data, ctx):
        key, acting_key = jax.random.split(ctx.key)
        acting = base.deploy(model, replica, state)
        data, rolled = rollout(*acting, data, acting_key)
        upload, state, metrics = base.client.update(
            model, replica, state, data, ctx._replace(key=key)
        )
        return upload, state, {**metrics, **rolled}

    return base._replace(client=algorithm.Client(base.client.init, update))
