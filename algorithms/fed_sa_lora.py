"""FedSA-LoRA: both factors are trained, A is shared, B stays with its client.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
ICLR 2025, arXiv:2410.01463.

    A <- A + sum p_k (A_k - A);   client k keeps B_k

A learns what clients have in common, B what is specific to a client. The authors' code has
`lora_B` and the classifier on its list of local parameters, the rest is FedAvg.

Deviations: the paper's classifier, also local, does not exist in a language model;
the mean is taken over updates, so that any optimizer may act as the server. Clients of rank r
train the first r components under alpha / r.
"""

import optax

from fedjax_post.adapters import factors
from fedjax_post.core import aggregates, algorithm, local, servers, world


def fed_sa_lora(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of A; each client has its own B.

    A round sends A down and A up, the components of the client's rank only; the first
    B is zero and is not charged.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer of both factors, fresh at every visit.
      server_tx: optimizer of A, given the negated mean update; None adds the mean update.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `Factors`, of which A is trained. A client's state is its B.
      Deployed with it, the model is that client's own; without it B is the first one,
      so that a client that never took part has the base model.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """
    server = servers.server_optimizer(server_tx or optax.sgd(1.0))

    def update(model, replica, own_b, data, ctx):
        held = replica._replace(b=own_b)
        start, end, metrics = factors.train(loss_fn, client_tx, held, model, data, ctx)
        change, only_a = optax.tree.sub(end.a, start.a), replica._replace(b=None)
        bill = factors.bill_by_rank(only_a, only_a, data.rank)
        return algorithm.Upload(change, weigh_fn(data), bill), end.b, metrics

    def serve(value, state, shared):
        a, state = server.update(value, state, shared.a)
        return shared._replace(a=a), state

    def deploy(model, replica, own_b=None):
        held = replica if own_b is None else replica._replace(b=own_b)
        return factors.deploy(model, held)

    return algorithm.Algorithm(
        client=algorithm.Client(lambda model, replica, key: replica.b, update),
        server=algorithm.Server(lambda shared: server.init(shared.a), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.Downlink(
            init=lambda shared: shared,
            encode=lambda shared: shared.a,
            receive=lambda a, replica: replica._replace(a=a),
        ),
        init=factors.split,
        deploy=deploy,
        read=lambda change, replica: algorithm.Reading(change),
        value_like=lambda shared: shared.a,
        ranked=True,
    )
