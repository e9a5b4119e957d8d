"""FedNova: clients that take more steps do not have more influence.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020, arXiv:2007.07481, equation 4. An optimizer
that is linear in the gradients moves a client by a weighted sum of them, with
weights a_k; FedNova divides by these, and the server multiplies by a common factor:

    d_k = (x - y_k) / (eta |a_k|_1),    x <- x - eta tau_eff sum_k p_k d_k,
    tau_eff = sum_k p_k |a_k|_1,        p_k = n_k / n

For SGD |a_k|_1 is the number of steps; for momentum and a proximal pull the paper has a formula
each. Here it is measured, as the distance that the optimizer moves in as many steps on a constant
slope of one: this equals the formulas, and holds for any other linear optimizer.

Deviations: tau_eff is a free choice; under a proximal pull the authors' code takes the mean
number of steps for it, which only scales the server's step. Under momentum and a pull together
that code adds the two formulas, so that a pull of strength 0 counts every step once more; this
does not. For Adam, which is not linear, this divides by the distance that Adam moves in as many
steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, world


class Normalized(NamedTuple):
    """A client's normalised change, and how far its optimizer moves on a slope of one."""

    direction: algorithm.PyTree  # -d_k
    length: algorithm.PyTree  # (), float32: eta |a_k|_1


def fed_nova(loss_fn: world.LossFn, client_tx: world.ClientTx) -> algorithm.Algorithm:
    """Federated averaging of normalised updates.

    With equal numbers of steps it is FedAvg weighted by examples. There is no `weigh_fn`:
    weights by the tokens of a visit would count the steps once more.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.

    Returns:
      An algorithm that shares the parameters themselves. A round sends one copy of
      them down, and one copy and a number up.
    """

    def slope_of_one(params, model, batch, key):
        return params, {}

    def update(model, replica, state, data, ctx):
        args = model, data, ctx
        params, _, metrics = local.local_steps(loss_fn, client_tx, replica, *args)
        low, _, _ = local.local_steps(slope_of_one, client_tx, jnp.zeros(()), *args)
        length = jnp.where(low < 0, -low, 1.0)
        direction = optax.tree.scale(1 / length, optax.tree.sub(params, replica))
        return (
            algorithm.Upload(Normalized(direction, -low), local.by_examples(data)),
            state,
            metrics,
        )

    def serve(mean, state, shared):
        return optax.tree.add_scale(shared, mean.length, mean.direction), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        value_like=lambda shared: Normalized(shared, jnp.zeros(())),
        refuses={
            algorithm.Around.SCALE: "its server multiplies two means, so that a bound or a fixed "
            "denominator would shrink its step twice",
        },
    )
