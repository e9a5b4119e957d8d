"""Local training: optimizer steps on one client, and optax parts that act inside them.

`local_steps` is the only place that counts steps. It hands every optimizer two
extra arguments, `anchor` (the parameters where the visit began) and `round`,
beside those that the algorithm gives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.algorithm import ClientData, Context, Metrics, PyTree, mean_of
from fedjax_post.core.world import LossFn


def local_steps(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    params: PyTree,
    model: PyTree,
    data: ClientData,
    ctx: Context,
    **extra: Any,
) -> tuple[PyTree, jax.Array, Metrics]:
    """Parameters after one optimizer step per batch, from a fresh optimizer state.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      tx: the local optimizer.
      params: where to start; also handed to `tx` as `anchor`.
      model: the frozen model.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context; step i draws from its key folded with i.
      **extra: further arguments for `tx.update`, such as `control`.

    Returns:
      The parameters, the number of steps taken (float32), and each metric's
      mean over those steps, its sum for those of `SUMMED`.
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
    """`local_steps` from, and to, a pair of parameters and optimizer state."""
    tx = optax.with_extra_args_support(tx)
    extra = {"anchor": carry[0], "round": ctx.round, **extra}

    def step(carry, batch, key):
        params, opt_state = carry
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, model, batch, key)
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return (optax.apply_updates(params, updates), opt_state), metrics

    carry, metrics = over_steps(step, carry, data, ctx)
    num_steps = _taken(data).sum(dtype=jnp.float32)
    return carry, num_steps, mean_of(metrics, jnp.maximum(num_steps, 1))


def mean_over_steps(fn: Callable, data: ClientData, ctx: Context) -> PyTree:
    """Mean of `fn(batch, key)`, any tree of floats, over the steps that would really be taken.

    Nothing is trained. Step i draws from the same key as in `local_steps`, so that
    a gradient at two points sees the same dropout.

    Args:
      fn: what is averaged; of one batch.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context.
    """
    _, total = over_steps(lambda carry, batch, key: (carry, fn(batch, key)), (), data, ctx)
    return optax.tree.scale(1 / jnp.maximum(_taken(data).sum(dtype=jnp.float32), 1), total)


def over_steps(
    step: Callable, carry: PyTree, data: ClientData, ctx: Context
) -> tuple[PyTree, PyTree]:
    """`(carry, summed outputs)` after `step(carry, batch, key) -> (carry, output)` for each step.

    Only steps that are taken count. The loop ends behind the last of them, so that a
    client of few steps costs what they cost: under vmap, what the client of most steps in
    its chunk costs. Its length is traced: it has forward derivatives, but no reverse ones.

    Args:
      step: one step; step i gets the visit's key folded with i.
      carry: where to start.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context.
    """
    taken = _taken(data)
    batch_of = lambda i: jax.tree.map(lambda x: jnp.asarray(x)[i], data.batches)
    key_of = lambda i: jax.random.fold_in(ctx.key, i)
    like = jax.eval_shape(step, carry, batch_of(0), key_of(0))[1]
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def body(i, both):
        carry, total = both
        moved, output = step(carry, batch_of(i), key_of(i))
        both_moved = moved, optax.tree.add(total, output)
        return jax.tree.map(lambda new, old: jnp.where(taken[i], new, old), both_moved, both)

    end = jnp.max(jnp.where(taken, jnp.arange(1, taken.size + 1), 0))
    return jax.lax.fori_loop(0, end, body, (carry, total))


def _taken(data: ClientData) -> jax.Array:
    return jnp.asarray(data.step_mask, bool)


def by_tokens(data: ClientData) -> jax.Array:
    """Weight of a client: the tokens that its losses looked at in this visit."""
    return jnp.asarray(data.num_tokens, jnp.float32)


def by_examples(data: ClientData) -> jax.Array:
    """Weight of a client: the examples that it holds (n_k of FedAvg)."""
    return jnp.asarray(data.num_examples, jnp.float32)


def uniformly(data: ClientData) -> jax.Array:
    """Weight of a client: 1."""
    del data
    return jnp.ones((), jnp.float32)


def add_proximal(mu: float) -> optax.GradientTransformationExtraArgs:
    """Adds `mu (params - anchor)` to the gradients: FedProx's pull, arXiv:1812.06127 eq. 2."""

    def update(grads, state, params, *, anchor, **_):
        pull = lambda g, p, a: g + mu * (p - a)
        return jax.tree.map(pull, grads, params, anchor), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def add_control() -> optax.GradientTransformationExtraArgs:
    """Adds the extra argument `control`, a tree like the gradients, to them."""

    def update(grads, state, params=None, *, control, **_):
        return optax.tree.add(grads, control), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_round(schedule: Callable) -> optax.GradientTransformationExtraArgs:
    """Scales updates by `schedule(round)`: a step size that changes between rounds only."""

    def update(updates, state, params=None, *, round, **_):
        return optax.tree.scale(schedule(round), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
