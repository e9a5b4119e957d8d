"""Local training: optimizer steps on one client, and optax transformations for these steps.

`local_steps` passes two extra arguments to every optimizer, `anchor` (the parameters at the
start of the visit) and `round`, in addition to those that the algorithm passes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.algorithm import ClientData, Context, Metrics, PyTree, mean_of
from fedjax_post.core.world import LossFn


class OwnGradient(NamedTuple):
    """A loss whose gradient is computed by a rule of its own, such as `privacy.private_rows`.

    An algorithm may only pass it to `local_steps`. One that evaluates it or differentiates it
    otherwise would go around the rule, and raises an error when it is traced.
    """

    loss_fn: LossFn
    # loss -> function (params, model, batch, key) -> (gradient, metrics)
    rule: Callable[[LossFn], Callable]

    def __call__(self, *given: Any) -> Any:
        """Raises ValueError."""
        raise ValueError(
            "this algorithm evaluates the loss outside local gradient steps, which the rule of "
            "its gradient does not cover; use one whose clients only take such steps, as fed_avg"
        )


def of_part(loss_fn: LossFn | OwnGradient, whole_fn: Callable) -> Any:
    """Returns the loss of the parameters `whole_fn(part)`; it keeps a rule of its gradient."""
    if isinstance(loss_fn, OwnGradient):
        return loss_fn._replace(loss_fn=of_part(loss_fn.loss_fn, whole_fn))
    return lambda part, *rest: loss_fn(whole_fn(part), *rest)


def _gradient_of(loss_fn: LossFn | OwnGradient) -> Callable:
    if isinstance(loss_fn, OwnGradient):
        return loss_fn.rule(loss_fn.loss_fn)
    return jax.grad(loss_fn, has_aux=True)


def local_steps(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    params: PyTree,
    model: PyTree,
    data: ClientData,
    ctx: Context,
    **extra: Any,
) -> tuple[PyTree, jax.Array, Metrics]:
    """Returns the parameters after one optimizer step per batch, from a fresh optimizer state.

    >>> import jax, numpy as np, optax
    >>> from fedjax_post.core import ClientData, Context, local_steps
    >>> def loss_fn(params, model, batch, key):
    ...     return jax.numpy.sum((params["x"] - batch) ** 2), {}
    >>> data = ClientData(np.ones((4, 1)), np.array([True, True, False, False]), 2.0, 2.0, 0)
    >>> ctx = Context(jax.random.key(0), 0, 0)
    >>> params = {"x": jax.numpy.zeros(1)}
    >>> params, num_steps, _ = local_steps(loss_fn, optax.sgd(0.25), params, None, data, ctx)
    >>> print(params["x"], num_steps)
    [0.75] 2.0

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, or an `OwnGradient`.
      tx: the local optimizer.
      params: the initial parameters; also passed to `tx` as `anchor`.
      model: the frozen model.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context; step i uses the context's key folded with i.
      **extra: further arguments of `tx.update`, such as `control`.

    Returns:
      The parameters, the number of steps taken (float32), and the metrics: the mean over
      these steps, or the sum for the metrics in `SUMMED`.
    """
    carry = params, tx.init(params)
    (params, _), num_steps, metrics = continued_steps(loss_fn, tx, carry, model, data, ctx, **extra)
    return params, num_steps, metrics


def continued_steps(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    carry: tuple[PyTree, PyTree],
    model: PyTree,
    data: ClientData,
    ctx: Context,
    **extra: Any,
) -> tuple[tuple[PyTree, PyTree], jax.Array, Metrics]:
    """Returns what `local_steps` returns, but continues from a given optimizer state.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      tx: the local optimizer.
      carry: parameters and optimizer state at the start; the parameters are the `anchor`.
      model: the frozen model.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context; step i uses the context's key folded with i.
      **extra: further arguments of `tx.update`, such as `control`.

    Returns:
      The pair of parameters and optimizer state after the steps, the number of steps, and the
      metrics.
    """
    tx = optax.with_extra_args_support(tx)
    extra = {"anchor": carry[0], "round": ctx.round, **extra}
    grad_fn = _gradient_of(loss_fn)

    def step(carry, batch, key):
        params, opt_state = carry
        grads, metrics = grad_fn(params, model, batch, key)
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return (optax.apply_updates(params, updates), opt_state), metrics

    carry, metrics = over_steps(step, carry, data, ctx)
    num_steps = _step_mask(data).sum(dtype=jnp.float32)
    return carry, num_steps, mean_of(metrics, jnp.maximum(num_steps, 1))


def mean_over_steps(fn: Callable, data: ClientData, ctx: Context) -> PyTree:
    """Returns the mean of `fn(batch, key)`, any tree of floats, over the unmasked steps.

    Nothing is trained. Step i uses the same key as in `local_steps`, so that gradients at two
    points see the same dropout.

    Args:
      fn: the function of one batch that is averaged.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context.
    """
    _, total = over_steps(lambda carry, batch, key: (carry, fn(batch, key)), (), data, ctx)
    return optax.tree.scale(1 / jnp.maximum(_step_mask(data).sum(dtype=jnp.float32), 1), total)


def over_steps(
    step: Callable, carry: PyTree, data: ClientData, ctx: Context
) -> tuple[PyTree, PyTree]:
    """Returns the final carry and the sum of the outputs of all unmasked steps.

    The loop ends after the last unmasked step, so a client with few steps costs only these
    steps; under vmap, as much as the client with the most steps in its chunk. The length of the
    loop is traced, so forward-mode derivatives exist but reverse-mode derivatives do not.

    Args:
      step: `(carry, batch, key) -> (carry, output)`; step i gets the visit's key folded with i.
      carry: the initial carry.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context.
    """
    mask = _step_mask(data)
    batch_of = lambda i: jax.tree.map(lambda x: jnp.asarray(x)[i], data.batches)
    key_of = lambda i: jax.random.fold_in(ctx.key, i)
    like = jax.eval_shape(step, carry, batch_of(0), key_of(0))[1]
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def body(i, both):
        carry, total = both
        moved, output = step(carry, batch_of(i), key_of(i))
        both_moved = moved, optax.tree.add(total, output)
        return jax.tree.map(lambda new, old: jnp.where(mask[i], new, old), both_moved, both)

    end = jnp.max(jnp.where(mask, jnp.arange(1, mask.size + 1), 0))
    return jax.lax.fori_loop(0, end, body, (carry, total))


def _step_mask(data: ClientData) -> jax.Array:
    return jnp.asarray(data.step_mask, bool)


def by_tokens(data: ClientData) -> jax.Array:
    """Returns the weight of a client: the tokens that its losses counted in this visit."""
    return jnp.asarray(data.num_tokens, jnp.float32)


def by_examples(data: ClientData) -> jax.Array:
    """Returns the weight of a client: the examples that it holds (n_k of FedAvg)."""
    return jnp.asarray(data.num_examples, jnp.float32)


def uniformly(data: ClientData) -> jax.Array:
    """Returns the weight of a client: 1."""
    del data
    return jnp.ones((), jnp.float32)


def add_proximal(mu: float) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that adds `mu (params - anchor)` to the gradients.

    This is the proximal term of FedProx, arXiv:1812.06127, eq. 2.
    """

    def update(grads, state, params, *, anchor, **_):
        pull = lambda g, p, a: g + mu * (p - a)
        return jax.tree.map(pull, grads, params, anchor), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def add_control() -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that adds the extra argument `control` to the gradients.

    `control` is a tree shaped like the gradients.
    """

    def update(grads, state, params=None, *, control, **_):
        return optax.tree.add(grads, control), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_round(schedule: Callable) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that scales updates by `schedule(round)`.

    The step size is constant within a round.
    """

    def update(updates, state, params=None, *, round, **_):
        return optax.tree.scale(schedule(round), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
