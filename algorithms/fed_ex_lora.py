"""FedEx-LoRA: averages both factors, and adds the error of that to the frozen base.

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning
of Foundation Models", ACL 2025, arXiv:2410.09432.

    A <- sum p_k A_k,   B <- sum p_k B_k
    W <- W + scale (sum p_k A_k B_k - A B)

so that the next round starts from exactly the mean of the clients' products.

The authors' code adds the residual transposed, which is right for GPT-2's layers, [in, out], and
wrong for every other model's, [out, in]: it fails unless in = out, and is then wrong without an
error. Here the residual is never transposed, since A is [in, R] and B [R, out].

Deviations: the paper's uniform mean is `weigh_fn=uniformly`. W itself does not change: the sum of
the residuals is one more product beside it, which is not mapped over clients. A client of rank r
counts with zeros beyond r, and starts from the first r components.
"""

from typing import NamedTuple

import jax
import optax

from fedjax_post.adapters import factors, products
from fedjax_post.core import algorithm, local, wire, world


class Shared(NamedTuple):
    """What the federation learns."""

    factors: factors.Factors  # the means
    residual: algorithm.PyTree  # leaves [num_layers, in, out]: all that was added to the base
    folded: jax.Array  # [adapted matrices], int32: components sent out so far


def fed_ex_lora(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of A and B with an exact residual in the base.

    A client uploads its factors. It is charged, for every round since its last visit,
    the means and the stack of that round's factors, or the dense sum of residuals and
    the latest means where that is less. A client keeps one count per adapted matrix.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares a `Shared` and deploys a model with a residual.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """

    def init(params):
        start = factors.split(params)
        sent = products.layer_counts(start) * factors.rank_of(start)
        return Shared(start, optax.tree.zeros_like(products.product_of(start)), sent)

    def update(model, replica, seen, data, ctx):
        model, means = factors.with_residual(model, replica.residual), replica.factors
        _, end, metrics = factors.train(loss_fn, client_tx, means, model, data, ctx)
        down = products.bill_of_folds(replica.folded, seen, means, beside=wire.num_bytes(means))
        bill = factors.bill_by_rank(means, means, data.rank)._replace(down=down)
        return algorithm.Upload(end, weigh_fn(data), bill), replica.folded, metrics

    def serve(means, state, shared):
        error = optax.tree.sub(means.product, products.product_of(means.factors))
        residual = optax.tree.add(shared.residual, error)
        num_sent = means.num_components + factors.rank_of(means.factors)
        folded = shared.folded + products.layer_counts(means.factors) * num_sent
        return Shared(means.factors, residual, folded), state

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, r, key: optax.tree.zeros_like(r.folded), update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=products.mean_products(),
        init=init,
        deploy=lambda model, r, state=None: factors.deploy(
            factors.with_residual(model, r.residual), r.factors
        ),
        read=factors.read_end,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.SCALE),
            "clients send their factors, not a change of them",
        ),
        ranked=True,
    )
