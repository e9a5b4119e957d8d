"""FedBiOT: offsite-tuning of the last layers, with a stand-in that its owner keeps aligned.

Wu et al., "FedBiOT: LLM Local Fine-tuning in Federated Learning without Full Model", KDD 2024,
arXiv:2406.17706, with the authors' code.

    owner, on public text:  middle <- steps that make the stand-in act like the target under x
    each client:            y_k = local steps from x on f_k + pull |y - x|^2, middle frozen
    server:                 x <- x + sum p_k (y_k - x)

where x are the last layers' factors. The pull keeps a client from making up with its own layers
for what the middle lacks.

Deviations: the pull acts on the factors A, B; in the authors' code on what they add to the
weights, A B. Updates are averaged, so that any optimizer may act as the server. The owner's steps
come after the server's, on text that is fixed before the run. The stand-in that is handed out
first may be aligned in all its weights (`model.alignment.align`); the authors' code trains factors
there too.
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
    middle: algorithm.PyTree  # factors of the stand-in's middle; () if it does not change


def fed_bi_ot(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    pull: float = 0.001,
    aligner: tuple[Callable, Callable] | None = None,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Offsite-tuning with a pull, and a middle that its owner updates in every round.

    With pull = 0 and no aligner it is `offsite_tuning`. A round sends the ends and the middle's
    factors down, the ends up; the stand-in itself is handed out once, before the run.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`; its model is the stand-in's.
      client_tx: the local optimizer of the ends; it receives the gradient with the pull.
      pull: weight of the squared distance to where the visit began, not negative. Under an
        optimizer that divides by the gradient's size, such as AdamW, its effect grows as
        the loss's gradient becomes smaller.
      aligner: the owner's `init() -> middle` and `update(ends, middle, round) -> middle`, such
        as `model.alignment.aligner`; None leaves the middle as it was handed out.
      server_tx: optimizer of the ends, given the negated mean update; None adds the update.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm for models {'emulator': an `Emulator`, 'target': the model it stands in for},
      to be started from `Emulator.ends(params)`, that shares a `Shared`. The paper's stand-in
      has first = 0. Only `deploy` and the aligner use the target.

    Raises:
      ValueError: if `pull` is negative.
    """
    if isinstance(pull, int | float) and pull < 0:
        raise ValueError(f"pull must not be negative, got {pull}; 0 is no pull")
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
