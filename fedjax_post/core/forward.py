"""Gradient estimates from forward passes, in the form of loss functions.

`two_point(loss_fn)` is a loss function whose gradient, computed with `jax.grad`, is the
estimate. Every algorithm accepts it in place of the loss: FedAvg, SCAFFOLD and the others
become gradient-free through this argument. `two_point` differentiates nothing inside, so a
model that grants WEIGHTS is sufficient; `forward_gradient` needs GRADIENTS because it takes a
forward-mode derivative. The *value* of such a function is not the loss.

For a direction z with independent standard normal entries and the slope s = <grad f, z>, the
estimate s z has mean grad f. Averaged over n directions, its mean squared error is
(d + 1) |grad f|^2 / n in d dimensions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.algorithm import Metrics, PyTree, mean_of
from fedjax_post.core.local import LossFn


def two_point(loss_fn: LossFn, *, epsilon: float = 1e-3, num_directions: int = 1) -> LossFn:
    """Returns a loss whose gradient is estimated by central differences along random directions.

    Spall's SPSA with normal directions, as in MeZO (Malladi et al., NeurIPS 2023,
    arXiv:2305.17333, Definition 1). The bias is of order epsilon^2.

    >>> import jax
    >>> from fedjax_post.core.forward import two_point
    >>> loss_fn = lambda params, model, batch, key: (3.0 * params["x"], {})
    >>> estimate_fn = two_point(loss_fn, num_directions=500)
    >>> params = {"x": jax.numpy.float32(0.0)}
    >>> grads, _ = jax.grad(estimate_fn, has_aux=True)(params, None, None, jax.random.key(0))
    >>> bool(abs(grads["x"] - 3.0) < 1.0)
    True

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      epsilon: half the distance between the two points, in units of a direction, positive.
      num_directions: directions per step, at least 1; each costs two forward passes.

    Raises:
      ValueError: if `epsilon` or `num_directions` is not positive.
    """
    if isinstance(epsilon, int | float) and not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    slope_fn = central_difference(loss_fn, epsilon)
    return _along_directions(slope_fn, num_directions)


def forward_gradient(loss_fn: LossFn, *, num_directions: int = 1) -> LossFn:
    """Returns a loss whose gradient is estimated by forward-mode derivatives.

    The derivatives are taken along random directions: Baydin et al., "Gradients without
    Backpropagation", 2022, arXiv:2202.08587. No activations are kept, and there is no error
    of finite differences.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      num_directions: directions per step, at least 1; each costs about two forward passes.

    Raises:
      ValueError: if `num_directions` is not positive.
    """

    def slope_fn(params, direction, model, batch, key):
        fn = lambda p: loss_fn(p, model, batch, key)
        _, slope, metrics = jax.jvp(fn, (params,), (direction,), has_aux=True)
        return slope, metrics

    return _along_directions(slope_fn, num_directions)


def central_difference(loss_fn: LossFn, epsilon: float | jax.Array) -> Callable:
    """Returns a function that measures the slope of the loss along a direction.

    It is `(params, direction, model, batch, key) -> (slope, metrics)` and uses the same key at
    both points.
    """

    def slope_fn(params, direction, model, batch, key):
        at = lambda e: loss_fn(optax.tree.add_scale(params, e, direction), model, batch, key)
        (up, metrics), (down, others) = at(epsilon), at(-epsilon)
        return (up - down) / (2 * epsilon), mean_of(optax.tree.add(metrics, others), 2)

    return slope_fn


def from_estimate(estimate_fn: Callable[..., tuple[PyTree, Metrics]]) -> LossFn:
    """Returns a loss function whose gradient is the tree that `estimate_fn` returns.

    `estimate_fn` is `(params, model, batch, key) -> (gradient, metrics)`.
    """

    def loss_fn(params, model, batch, key):
        grads, metrics = estimate_fn(jax.lax.stop_gradient(params), model, batch, key)
        return optax.tree.vdot(grads, params), metrics

    return loss_fn


def random_direction(key: jax.Array, like: PyTree) -> PyTree:
    """Returns independent standard normal entries, which depend on the key and shapes only."""
    return optax.tree.random_like(key, like, jax.random.normal)


def _along_directions(slope_fn: Callable, num_directions: int) -> LossFn:
    if num_directions < 1:
        raise ValueError(f"num_directions must be at least 1, got {num_directions}")

    def estimate(params, model, batch, key):
        keys = jax.random.split(key, num_directions + 1)

        def probe(z_key):
            z = random_direction(z_key, params)
            slope, metrics = slope_fn(params, z, model, batch, keys[0])
            return optax.tree.scale(slope, z), metrics

        # one direction at a time, so that memory does not grow with their number
        add = lambda total, z_key: (optax.tree.add(total, probe(z_key)), None)
        like = jax.eval_shape(probe, keys[0])
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        (slopes, metrics), _ = jax.lax.scan(add, total, keys[1:])
        return optax.tree.scale(1 / num_directions, slopes), mean_of(metrics, num_directions)

    return from_estimate(estimate)
