"""FLoRIST: FLoRA whose stack is cut to its strongest singular directions before it is sent.

Ramesh and Dass, "FLoRIST: Singular Value Thresholding for Efficient and Accurate
Federated Fine-Tuning of Large Language Models", arXiv:2506.09199, 2025, section 3 and Algorithm 1.

    U S V' = sum p_k A_k B_k;   p is the least rank with sum_{i <= p} S_i^2 >= tau sum_i S_i^2
    W <- W + scale U[:, :p] (S V')[:p]

Deviations: the thin factors of the two stacks come from QR rather than SVD, and the SVD of the
small core follows as in the paper; the product is the same. p is chosen for each adapted matrix
of each layer. Algorithm 1 does not say how a client starts its own factors after it has merged
what it received: here afresh, as in FLoRA. The paper has no alpha / r; here each product counts
under its client's.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters import products
from fedjax_post.algorithms.flora import flora
from fedjax_post.core import aggregates, algorithm, local, world


def florist(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    energy: float = 0.9,
    redraw: bool = True,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Adds the stacked factors of the clients to the base, cut by singular values.

    A client uploads the components of its rank. It is charged the p components of all
    rounds since its last visit, or the dense sum where that is less. A client keeps one
    count per adapted matrix; the server needs memory for the factors of a whole cohort.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      energy: tau, the least share of the squared singular values to keep, in (0, 1]; 1: all.
      redraw: each visit draws a new A; False: all start from the first A.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `flora`'s `Shared` and deploys a model with a residual.

    Raises:
      ValueError: if `energy` is outside (0, 1]; at the start of a run, if anything but an
        adapter is to be trained.
    """
    if isinstance(energy, int | float) and not 0 < energy <= 1:
        raise ValueError(
            f"energy must be in (0, 1], got {energy}; 1 keeps everything, as flora does"
        )

    def cut(a, b, shares):
        svd = products.product_svd(a, b, shares)
        largest = svd.values[:, :1]  # squares of small values would vanish in float32
        squares = jnp.square(svd.values / jnp.where(largest > 0, largest, 1))
        before = jnp.cumsum(squares, 1) - squares
        kept = (before < energy * squares.sum(1, keepdims=True)) & (squares > 0)
        values = jnp.where(kept, svd.values, 0)
        product = jnp.einsum(
            "nip,npo->nio", svd.left, values[..., None] * svd.right, precision="highest"
        )
        return product, kept.sum(dtype=jnp.int32)

    def serve(cohort, state, shared):
        values, shares = cohort[0], products.shares_of(cohort[1])
        cuts = jax.tree.map(lambda a, b: cut(a, b, shares), *values)
        product, counts = products.unzip(cuts, shared.residual)
        return shared._replace(
            residual=optax.tree.add(shared.residual, product),
            folded=shared.folded + jnp.stack(jax.tree.leaves(counts)),
        ), state

    return flora(loss_fn, client_tx, redraw=redraw, weigh_fn=weigh_fn)._replace(
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.stack()._replace(kind="products"),
    )
