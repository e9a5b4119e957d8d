"""FedBiOT: offsite-tuning of the last layers, whose stand-in is kept in step by its owner.

Wu et al., "FedBiOT: LLM Local Fine-tuning in Federated Learning without Full Model", KDD 2024,
arXiv:2406.17706, with the authors' code.

    owner, on public text:  middle <- steps that make the stand-in act like the target under x
    each client:            y_k = local steps from x on f_k + pull |y - x|^2, middle frozen
    server:                 x <- x + sum p_k (y_k - x)

where x are the last layers' factors. The pull keeps a client from mending with its own layers
what the middle lacks.

Deviations: the pull acts on the factors A, B; in the authors' code on what they add to the
weights, A B. Updates are averaged, so that any optimizer may serve. The owner's steps follow
the server's, on text that is fixed before the run. What is handed out first may be aligned by
all its weights (`model.alignment.align`); the authors' code trains factors there too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world
from fedjax_post.core.access import Access


class Shared(NamedTuple):
    """What the federation learns, and what its model's owner adds to it."""

    ends: algorithm.PyTree  # x: the layers that clients train
    middle: algorithm.PyTree  # factors of the stand-in's middle; () if it stays as handed out


def fed_bi_ot(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    pull: float = 0.001,
    aligner: tuple[Callable, Callable] | None = None,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Offsite-tuning with a pull, and a middle that its owner brings up to date in every round.

    With pull = 0 and no aligner it is `offsite_tuning`. A round sends the ends and the middle's
    factors down, the ends up; the stand-in itself is handed out once, before it.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`; it sees the stand-in's model.
      client_tx: the local optimizer of the ends; it sees the gradient with the pull in it.
      pull: weight of the squared distance to where the visit began, not negative. Under an
        optimizer that divides by the gradient's size, such as AdamW, it weighs more the
        smaller the loss's gradient becomes.
      aligner: the owner's `init() -> middle` and `update(ends, middle, round) -> middle`, such
        as `model.alignment.aligner`; None leaves the middle as it was handed out.
      server_tx: optimizer of the ends, fed the negated mean update; None adds the mean update.
      weigh_fn: `(ClientData) -> ()`, how much a client counts.

    Returns:
      An algorithm for models {'emulator': an `Emulator`, 'target': the model behind it}, to be
      started from `Emulator.ends(params)`, that shares a `Shared`. The paper's stand-in has
      first = 0. The target is used in `deploy` and by the aligner alone.

    Raises:
      ValueError: if `pull` is negative.
    """
    if isinstance(pull, int | float) and pull < 0:
        raise ValueError(f"pull must not be negative, got {pull}; 0 lets clients go")
    init_middle, realign = aligner or (tuple, None)
    # the gradient of pull |y - x|^2
    pulled_tx = optax.chain(local.add_proximal(2 * pull), client_tx)
    server = servers.server_optimizer(server_tx or optax.sgd(1.0))

    def update(models, replica, state, data, ctx):
        emulator = models["emulator"]

        def loss(ends, model, batch, key):
            return loss_fn(emulator.spread(ends, replica.middle), model, batch, key)

        ends, _, metrics = local.local_steps(
            loss, pulled_tx, replica.ends, emulator.model, data, ctx
        )
        return algorithm.Upload(optax.tree.sub(ends, replica.ends), weigh_fn(data)), state, metrics

    def serve(value, state, shared):
        inner, round = state
        ends, inner = server.update(value, inner, shared.ends)
        middle = shared.middle if realign is None else realign(ends, shared.middle, round)
        return Shared(ends, middle), (inner, round + 1)

    def deploy(models, replica, state=None):
        del state
        return models["target"], models["emulator"].plug(models["target"], replica.ends)

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (server.init(shared.ends), jnp.int32(0)), serve),
        aggregate=aggregates.weighted_mean(),
        init=lambda ends: Shared(ends, init_middle()),
        deploy=deploy,
        access={"emulator": Access.GRADIENTS},
        value_like=lambda shared: shared.ends,
        read=lambda change, replica: algorithm.as_change(change, replica.ends),
    )
