"""Mime: MimeLite whose local steps are corrected towards the federation's gradient.

Karimireddy et al., "Breaking the centralized barrier for cross-device federated
learning", NeurIPS 2021, arXiv:2008.03606, Algorithm 1. A round has two exchanges.
First the clients send their gradients at x; c is the mean. Then they train:

    client:  y <- y - eta U(g_k(y) - g_k(x) + c; s),  both g_k on one batch, s frozen
    server:  x <- mean_k y_k,   s <- V(c, s)

One round of the paper is two rounds here: `shared.control_due` tells which exchange
it is, so that a round without any client only delays its exchange.

FedJAX's code is the same except for its weights, the clients' examples, and its two exchanges
in one round.

Deviations: the cohort is drawn anew for the second exchange (no difference if all clients
take part); the gradient at x is over the batches of a visit; U and V as in `mime_lite`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.algorithms.mime_lite import freeze, next_state
from fedjax_post.core import aggregates, algorithm, local, world


class Shared(NamedTuple):
    """What the federation learns, the optimizer that all clients use, and what comes next."""

    params: algorithm.PyTree  # x
    opt_state: algorithm.PyTree  # s
    control: algorithm.PyTree  # c: mean gradient at x
    control_due: jax.Array  # (), bool: the next round asks for gradients


def mime(loss_fn: world.LossFn, client_tx: world.ClientTx) -> algorithm.Algorithm:
    """Federated averaging that mimics a central optimizer, without client states.

    One local step on a whole visit's batch is a central step of `client_tx`.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the base optimizer; its state is the federation's.

    Returns:
      An algorithm whose `shared` is a `Shared`. Each of a step's two rounds sends two
      trees and the optimizer's state down, and one tree up.
    """
    tx = freeze(client_tx)
    grad_fn = jax.grad(loss_fn, has_aux=True)

    def gradient(model, replica, data, ctx):
        at_x = lambda *args: grad_fn(replica.params, model, *args)
        return local.mean_over_steps(at_x, data, ctx)

    def drift(model, replica, data, ctx):
        x, s, c, _ = replica

        def corrected(y, model, *args):
            loss, metrics = loss_fn(y, model, *args)
            correction = optax.tree.sub(c, grad_fn(x, model, *args)[0])
            return loss + optax.tree.vdot(correction, y), metrics

        y, _, metrics = local.local_steps(corrected, tx, x, model, data, ctx, opt_state=s)
        return optax.tree.sub(y, x), metrics

    def update(model, replica, state, data, ctx):
        value, metrics = jax.lax.cond(
            replica.control_due, gradient, drift, model, replica, data, ctx
        )
        return algorithm.Upload(value, local.uniformly(data)), state, metrics

    def serve(mean, state, shared):
        x, s, c, control_due = shared
        asked = Shared(x, s, mean, ~control_due)
        trained = Shared(optax.tree.add(x, mean), next_state(client_tx, c, shared), c, ~control_due)
        return jax.tree.map(lambda a, b: jnp.where(control_due, a, b), asked, trained), state

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return Shared(params, client_tx.init(params), zeros, jnp.array(True))

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        value_like=lambda shared: shared.params,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.STALE),
            "rounds of gradients and rounds of drifts take turns",
        ),
        init=init,
        deploy=lambda model, replica, state=None: (model, replica.params),
    )
