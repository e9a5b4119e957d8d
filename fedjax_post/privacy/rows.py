"""Differential privacy of single rows: DP-SGD in the local steps of every client.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133, Algorithm 1.
The gradient of every row of a batch is clipped on its own; their sum gets noise and is divided by
the number of rows of the batch. Whatever a client does with its gradients afterwards, and all that
it sends, is then private for one of its rows, also from the server.

Deviations: batches are the run's own, shuffled and not drawn independently, so that the account
(`privacy.accounts.row_steps`) is without amplification by sampling. The gradient is the mean over
rows of each row's own mean over its tokens, not the mean over all tokens of the batch.
"""

from collections.abc import Callable

import jax
import optax

from fedjax_post.core.local import OwnGradient
from fedjax_post.core.norms import limit_norm
from fedjax_post.core.world import LossFn
from fedjax_post.privacy.noise import add_normal, check_numbers

_STREAM = 0x726F7773  # separates the keys of noise from those of dropout


def private_rows(
    loss_fn: LossFn, *, clip_norm: float, noise_multiplier: float, at_once: int | None = None
) -> OwnGradient:
    """Returns a loss whose gradient in local steps hides each row.

    Give it to an algorithm in place of the loss. One that uses the loss in any other way than by
    `local_steps` raises an error when it is traced. Client weights must not depend on the rows:
    use `core.uniformly`.

    >>> import jax.numpy as jnp, optax
    >>> from fedjax_post.algorithms.fed_avg import fed_avg
    >>> from fedjax_post.core import uniformly
    >>> loss_fn = lambda params, model, batch, key: (jnp.sum(params * batch), {})
    >>> loss_fn = private_rows(loss_fn, clip_norm=1.0, noise_multiplier=0.8)
    >>> algorithm = fed_avg(loss_fn, optax.sgd(0.1), weigh_fn=uniformly)

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`; a batch has leaves `[B, ...]`.
      clip_norm: largest norm of the gradient of one row.
      noise_multiplier: standard deviation of the noise on the sum of a batch's gradients, divided
        by `clip_norm`.
      at_once: number of rows whose gradients are in memory at once; None: all of a batch.

    Raises:
      ValueError: if a number is out of range.
    """
    check_numbers(clip_norm=clip_norm, noise_multiplier=noise_multiplier)

    def rule(loss_fn: LossFn) -> Callable:
        def grad_fn(params, model, batch, key):
            size = len(jax.tree.leaves(batch)[0])

            def of_row(row_and_key):
                row, row_key = row_and_key
                one = jax.tree.map(lambda x: x[None], row)
                grads, metrics = jax.grad(loss_fn, has_aux=True)(params, model, one, row_key)
                return limit_norm(grads, clip_norm), metrics

            keys = jax.random.split(key, size)
            each = jax.lax.map(of_row, (batch, keys), batch_size=at_once or size)
            grads, metrics = jax.tree.map(lambda x: x.sum(0), each)
            deviation = clip_norm * noise_multiplier
            noised = add_normal(grads, deviation, jax.random.fold_in(key, _STREAM))
            return optax.tree.scale(1 / size, noised), optax.tree.scale(1 / size, metrics)

        return grad_fn

    return OwnGradient(loss_fn, rule)
