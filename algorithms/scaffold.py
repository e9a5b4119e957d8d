"""SCAFFOLD: corrects client drift with control variates.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, arXiv:1910.06378, Algorithm 1: `scaffold` is option II,
`scaffold_option_1` option I.

With several local steps on unlike data, the mean of the clients' models moves
away from the minimum of the mean loss. Each client k therefore keeps an
estimate c_k of its own gradient, the server keeps their mean c, and every local
step follows g - c_k + c in place of g. Clients have equal weights.

Deviations: c moves by |S| / N times the mean change of the c_k, with `participation` for |S| / N,
so that a cohort of another size counts as one of the usual size. If cohorts differ in size
(Poisson sampling, buffers, dropped clients), or if a link, a clip or a robust rule alters the
changes of the c_k that are sent, c is no longer the mean of the c_k. This difference stays, and
training ends where the mean gradient equals it and not zero. With `fixed_mean` of the usual size
in place of the mean, as under noise, c is the mean for cohorts of any size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


class Shared(NamedTuple):
    """What the federation learns; two trees of one structure."""

    params: algorithm.PyTree  # x
    control: algorithm.PyTree  # c: mean gradient over all clients


def scaffold(
    loss_fn: world.LossFn,
    learning_rate: world.LearningRate,
    *,
    participation: world.Participation,
    server_tx: world.ServerTx | None = None,
) -> algorithm.Algorithm:
    """Federated averaging whose local steps are corrected for drift.

    With zero controls the first round equals FedAvg's with equal weights. The local
    optimizer is always plain SGD, since option II computes the mean gradient from the
    change, as (x - y) / (K learning_rate): with another optimizer that is not a gradient.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      learning_rate: local step size, or a function from the round to it.
      participation: cohort size over population size, in (0, 1].
      server_tx: optimizer that receives the negated mean drift; None adds the mean drift.

    Returns:
      An algorithm whose `shared` is a `Shared`, and whose client state is one
      control, shaped like the parameters: as much host memory per client ever
      seen as one adapter. A round sends 2 adapters down and 2 up.

    Raises:
      ValueError: if `participation` is outside (0, 1].

    Example:
      >>> algorithm = scaffold(lambda w, model, batch, key: (w @ w, {}), 0.1, participation=0.5)
      >>> algorithm.init(jnp.ones(3)).control
      Array([0., 0., 0.], dtype=float32)
    """
    if isinstance(participation, int | float) and not 0 < participation <= 1:
        raise ValueError(f"participation must be in (0, 1], got {participation}")
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate
    tx = optax.chain(local.add_control(), optax.sgd(1.0), local.scale_by_round(schedule))

    def update(model, replica, c_k, data, ctx):
        x, c = replica
        shift = optax.tree.sub(c, c_k)
        y, num_steps, metrics = local.local_steps(loss_fn, tx, x, model, data, ctx, control=shift)
        drift, length = optax.tree.sub(y, x), jnp.maximum(num_steps, 1) * schedule(ctx.round)
        new = optax.tree.sub(optax.tree.scale(-1 / length, drift), shift)
        return algorithm.Upload(Shared(drift, optax.tree.sub(new, c_k)), jnp.ones(())), new, metrics

    txs = {"params": server_tx or optax.sgd(1.0), "control": optax.sgd(participation)}
    server_tx = optax.partition(txs, lambda _: Shared("params", "control"))
    return algorithm.Algorithm(
        algorithm.Client(lambda model, r, key: optax.tree.zeros_like(r.params), update),
        servers.server_optimizer(server_tx),
        aggregates.weighted_mean(),
        init=lambda params: Shared(params, optax.tree.zeros_like(params)),
        deploy=lambda model, replica, state=None: (model, replica.params),
        read=lambda value, replica: algorithm.as_change(value.params, replica.params),
    )


def scaffold_option_1(
    loss_fn: world.LossFn,
    learning_rate: world.LearningRate,
    *,
    participation: world.Participation,
    server_tx: world.ServerTx | None = None,
) -> algorithm.Algorithm:
    """SCAFFOLD whose controls are gradients at the shared model.

    Args:
      loss_fn: as in `scaffold`.
      learning_rate: as in `scaffold`.
      participation: as in `scaffold`.
      server_tx: as in `scaffold`.

    Returns:
      As `scaffold`, but more stable, for one more pass over the data of a visit.
    """
    other = scaffold(loss_fn, learning_rate, participation=participation, server_tx=server_tx)

    def update(model, replica, c_k, data, ctx):
        upload, _, metrics = other.client.update(model, replica, c_k, data, ctx)
        at_x = lambda *args: jax.grad(loss_fn, has_aux=True)(replica.params, model, *args)[0]
        new_c_k = local.mean_over_steps(at_x, data, ctx)
        value = upload.value._replace(control=optax.tree.sub(new_c_k, c_k))
        return upload._replace(value=value), new_c_k, metrics

    return other._replace(client=other.client._replace(update=update))
