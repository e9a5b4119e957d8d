"""FLoRA: clients' factors are stacked, their product is added to the frozen base.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
Low-Rank Adaptations", NeurIPS 2024, arXiv:2409.05976.

    W <- W + scale [p_1 A_1, .., p_K A_K] [B_1; ..; B_K] = W + scale sum p_k A_k B_k

The weight is on A alone; on both factors it would count twice. Ranks may differ, and
each client's product counts under its own alpha / r. Every client starts the next
round from a fresh A and B = 0.

The authors' code gives the same sum on the same factors; its branch for plain FedIT
returns the first client's share alone, because of a wrong variable name.

Deviations: the server keeps the sum of the stacks' products, which clients would compute from
the stacks, in place of the stacks: its memory does not grow with the cohort. W itself does not
change: the sum is one more product beside it, which is not mapped over clients.
"""

from typing import NamedTuple

import jax
import optax

from fedjax_post.adapters import factors, products
from fedjax_post.core import algorithm, local, world


class Shared(NamedTuple):
    """What the federation learns."""

    start: factors.Factors  # where clients begin: B is zero
    residual: algorithm.PyTree  # leaves [num_layers, in, out]: all that was added to the base
    folded: jax.Array  # [adapted matrices], int32: components sent out so far


def flora(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    redraw: bool = True,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Adds the stacked factors of the clients to the base.

    A client uploads the components of its rank. It is charged the stacks of all rounds
    since its last visit, or the dense sum of all stacks where that is less. A client
    keeps one count per adapted matrix.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      redraw: each visit draws a new A; False: all start from the first A.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares a `Shared` and deploys a model with a residual and an
      adapter that adds nothing.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """

    def init(params):
        given = factors.split(params)
        start = given._replace(b=optax.tree.zeros_like(given.b))
        count = optax.tree.zeros_like(products.layer_counts(start))
        return Shared(start, products.product_of(given), count)

    def update(model, replica, seen, data, ctx):
        start = replica.start
        if redraw:
            key, draw_key = jax.random.split(ctx.key)
            ctx, start = ctx._replace(key=key), factors.redraw(start, draw_key)
        model = factors.with_residual(model, replica.residual)
        _, end, metrics = factors.train(loss_fn, client_tx, start, model, data, ctx)
        down = products.bill_of_folds(replica.folded, seen, replica.start)
        bill = factors.bill_by_rank(start, start, data.rank)._replace(down=down)
        return algorithm.Upload(end, weigh_fn(data), bill), replica.folded, metrics

    def serve(means, state, shared):
        folded = shared.folded + products.layer_counts(shared.start) * means.num_components
        residual = optax.tree.add(shared.residual, means.product)
        return Shared(shared.start, residual, folded), state

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, r, key: optax.tree.zeros_like(r.folded), update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=products.mean_products()._replace(kind="products"),
        init=init,
        deploy=lambda model, r, state=None: factors.deploy(
            factors.with_residual(model, r.residual), r.start
        ),
        read=factors.read_end,
        refuses={algorithm.Around.MEMORY: "clients start afresh in every round"},
        ranked=True,
    )
