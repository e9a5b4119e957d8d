"""Servers: update the shared variables from the aggregate.

An optax transformation receives the *negated* mean update as its gradient, so that SGD with
step size 1 adds the mean update itself. The `literal_*` optimizers follow Algorithm 2 of Reddi
et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, exactly: the second
moment squares the *momentum*, starts at tau^2, and there is no bias correction. optax's adam
and yogi differ in all three points.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.algorithm import PyTree, Server
from fedjax_post.core.checked import check_like

_MOVED = "an Upload whose value is laid out like the variables that server_optimizer updates"


def server_optimizer(tx: optax.GradientTransformation) -> Server:
    """Returns a server that passes the negated mean update to `tx` as a gradient.

    Reddi et al., ICLR 2021, arXiv:2003.00295, Algorithm 1.

    >>> import jax.numpy as jnp, optax
    >>> from fedjax_post.core import server_optimizer
    >>> server = server_optimizer(optax.sgd(1.0))
    >>> shared = {"x": jnp.array([1.0])}
    >>> shared, _ = server.update({"x": jnp.array([0.5])}, server.init(shared), shared)
    >>> print(shared["x"])
    [1.5]
    """

    def update(value, state, shared):
        check_like("client.update", _MOVED, value, shared)
        updates, state = tx.update(optax.tree.scale(-1.0, value), state, shared)
        return optax.apply_updates(shared, updates), state

    return Server(tx.init, update)


def keep_latest() -> Server:
    """Returns a server whose shared variables become the aggregated value itself."""
    return Server(lambda shared: (), lambda value, state, shared: (value, state))


def literal_adam(
    learning_rate: float | Callable, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Returns FedAdam's server optimizer: v <- b2 v + (1 - b2) m^2.

    Args:
      learning_rate: the server's step size (eta), or a function of the number of steps taken.
      b1: decay of the momentum m, in [0, 1).
      b2: decay of the second moment v, in [0, 1).
      tau: added to the root of v in the denominator; v starts at tau^2. Positive.
    """
    return _adaptive(learning_rate, b1, tau, lambda v, m: b2 * v + (1 - b2) * m**2)


def literal_yogi(
    learning_rate: float | Callable, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Returns FedYogi's server optimizer: v <- v - (1 - b2) m^2 sign(v - m^2).

    Args:
      learning_rate: as in `literal_adam`.
      b1: decay of the momentum m, in [0, 1).
      b2: as in `literal_adam`.
      tau: as in `literal_adam`.
    """
    return _adaptive(learning_rate, b1, tau, lambda v, m: v - (1 - b2) * m**2 * jnp.sign(v - m**2))


def literal_adagrad(
    learning_rate: float | Callable, *, b1: float = 0.0, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Returns FedAdagrad's server optimizer: v <- v + m^2.

    Args:
      learning_rate: as in `literal_adam`.
      b1: decay of the momentum m, in [0, 1).
      tau: as in `literal_adam`.
    """
    return _adaptive(learning_rate, b1, tau, lambda v, m: v + m**2)


def _adaptive(
    learning_rate: float | Callable, b1: float, tau: float, second_moment: Callable
) -> optax.GradientTransformation:
    def init(shared: PyTree):
        return optax.tree.zeros_like(shared), optax.tree.full_like(shared, tau**2)

    def update(grads, state, params=None):
        del params
        m, v = state
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(second_moment, v, m)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), m, v), (m, v)

    direction = optax.GradientTransformation(init, update)
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))
