"""FlexLoRA: the mean of products, cut by an SVD to the rank of each client.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
and Client Resources", NeurIPS 2024, arXiv:2402.11505.

    U S V' = sum p_k A_k B_k                    (under each client's alpha / r_k)
    client k receives A = U[:, :r_k], B = (S V')[:r_k]

which is the best approximation of the mean with rank r_k (Eckart-Young).

B is divided by the receiver's alpha / r_k, so that a client holds the product that the server
cut, whatever its rank. The authors' code does the same, with an alpha of 16 for all, and gives
the same products on the same factors.

Deviations: the mean product is never formed; its singular vectors come from the thin QR factors
of the stacks.
"""

from fedjax_post.adapters import factors, products
from fedjax_post.core import aggregates, algorithm, local, world


def flex_lora(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Averaging of products, redistributed by singular value decomposition.

    A round sends both factors down and both up, the components of the client's rank.
    Clients keep no state; the server needs memory for the factors of a whole cohort.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer, fresh at every visit.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `Factors`, singular directions in descending order.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """

    def update(model, replica, state, data, ctx):
        _, end, metrics = factors.train(loss_fn, client_tx, replica, model, data, ctx)
        bill = factors.bill_by_rank(replica, replica, data.rank)
        return algorithm.Upload(end, weigh_fn(data), bill), state, metrics

    def serve(cohort, state, shared):
        values, weights = cohort
        shares = products.shares_of(weights)
        return products.top_components(values, shares, factors.rank_of(shared)), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.stack()._replace(kind="products"),
        init=factors.split,
        deploy=factors.deploy,
        read=factors.read_end,
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.SCALE),
            "clients send their factors, not a change of them",
        ),
        ranked=True,
    )
