"""MimeLite: clients step with the server's optimizer, its state frozen.

Karimireddy et al., "Breaking the centralized barrier for cross-device federated
learning" (Mime), NeurIPS 2021, arXiv:2008.03606, Algorithm 1. For a base optimizer
that steps by U(gradient; s) and updates its statistics by s <- V(gradient, s):

    client:  y <- y - eta U(g_k(y); s)   with s as it was sent, at every step
    server:  x <- mean_k y_k,   s <- V(mean_k grad f_k(x), s)

so that momentum and Adam's moments describe the whole federation, not a client.

FedJAX's code is the same except for the clients' weights, equal here and in the paper.

Deviations: the gradient at x is over the batches of the visit, not all of a client's data. U of
an optax optimizer is the step that it would take next: for momentum that is the paper's U up to a
constant factor; for Adam the second moment also includes the client's own gradient, and the bias
correction continues.
"""

from typing import NamedTuple

import jax
import optax

from fedjax_post.core import aggregates, algorithm, local, world


class Shared(NamedTuple):
    """What the federation learns, and the state of the optimizer that all clients use."""

    params: algorithm.PyTree  # x
    opt_state: algorithm.PyTree  # s


class Visit(NamedTuple):
    """What a client sends, two trees like the parameters."""

    drift: algorithm.PyTree  # y_k - x
    gradient: algorithm.PyTree  # of f_k at x


def freeze(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns `tx` with the state of the extra argument `opt_state`, which is never updated."""
    tx = optax.with_extra_args_support(tx)

    def update(grads, state, params=None, *, opt_state, **extra):
        return tx.update(grads, opt_state, params, **extra)[0], state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def next_state(
    tx: optax.GradientTransformation, gradient: algorithm.PyTree, shared: Shared
) -> algorithm.PyTree:
    """Returns V: the optimizer's state after a gradient.

    Args:
      tx: the base optimizer.
      gradient: shaped like the parameters.
      shared: the parameters and the state before; step sizes, hence rounds, do not enter it.
    """
    tx = optax.with_extra_args_support(tx)
    return tx.update(gradient, shared.opt_state, shared.params, anchor=shared.params, round=0)[1]


def mime_lite(loss_fn: world.LossFn, client_tx: world.ClientTx) -> algorithm.Algorithm:
    """Federated averaging with one optimizer state for the federation.

    With plain SGD, which has no state, it is FedAvg with equal weights.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the base optimizer; its state is the federation's.

    Returns:
      An algorithm whose `shared` is a `Shared`. A round sends the parameters and
      the optimizer's state down, and two trees like the parameters up.
    """
    tx = freeze(client_tx)

    def update(model, replica, state, data, ctx):
        x, s = replica
        y, _, metrics = local.local_steps(loss_fn, tx, x, model, data, ctx, opt_state=s)
        grad = lambda *batch_key: jax.grad(loss_fn, has_aux=True)(x, model, *batch_key)[0]
        value = Visit(optax.tree.sub(y, x), local.mean_over_steps(grad, data, ctx))
        return algorithm.Upload(value, local.uniformly(data)), state, metrics

    def serve(mean, state, shared):
        s = next_state(client_tx, mean.gradient, shared)
        return Shared(optax.tree.add(shared.params, mean.drift), s), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        init=lambda params: Shared(params, client_tx.init(params)),
        deploy=lambda model, replica, state=None: (model, replica.params),
        value_like=lambda shared: Visit(shared.params, shared.params),
        read=lambda value, replica: algorithm.as_change(value.drift, replica.params),
    )
