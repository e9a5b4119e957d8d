"""FedSVD: only B is trained; after each round A becomes the singular directions of A B.

Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with
LoRA", NeurIPS 2025, arXiv:2505.12805.

    B <- B + sum p_k (B_k - B),    U S V' = A B,    A <- U,    B <- S V'

Averaging is exact, as in FFA-LoRA, and the last step does not change A B. It uses only what the
server knows already, so that it keeps differential privacy of B. It makes the directions of A
orthonormal; their span never changes.

The authors' code also updates the factors after every round by default, and gives the same
factors up to signs.

Deviations: clients of rank r train the first r components under alpha / r, the
directions of the largest singular values. A of the first round is the given one.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters import factors, products
from fedjax_post.core import aggregates, algorithm, local, world


def fed_svd(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of B over an A that follows the singular vectors.

    A round sends both factors down and B up, the components of the client's rank only.
    Clients keep no state.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; it receives B alone.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `Factors`; A has orthonormal columns after a round.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """

    def update(model, replica, state, data, ctx):
        start, end, metrics = factors.train(loss_fn, client_tx, replica, model, data, ctx, only="b")
        bill = factors.bill_by_rank(replica, replica._replace(a=None), data.rank)
        change = optax.tree.sub(end.b, start.b)
        return algorithm.Upload(change, weigh_fn(data), bill), state, metrics

    def serve(value, state, shared):
        moved = shared._replace(b=optax.tree.add(shared.b, value))
        alone = jax.tree.map(lambda x: x[None], moved)
        return products.top_components(alone, jnp.ones(1), factors.rank_of(shared)), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        init=factors.split,
        deploy=factors.deploy,
        read=factors.read_change_of_b,
        value_like=lambda shared: shared.b,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.STALE),
            "the server changes A, so that a change of B means nothing in later rounds",
        ),
        ranked=True,
    )
