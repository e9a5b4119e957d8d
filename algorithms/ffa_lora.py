"""FFA-LoRA: A is frozen at a common random value, B alone is trained and averaged.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024,
arXiv:2403.12313.

    B <- B + sum p_k (B_k - B)

A common A makes the mean of products the product of means, so that averaging has
no error: sum p_k A B_k = A sum p_k B_k.

The paper's sections 3 and 4 are recalled, not checked; the codes of FedEx-LoRA and FedSA-LoRA
contain the same baseline.

Deviations: the mean is taken over updates, so that any optimizer may act as the server; clients
of rank r train the first r components under alpha / r, the rest of B does not change.
"""

import optax

from fedjax_post.adapters import factors
from fedjax_post.core import aggregates, algorithm, local, servers, world


def ffa_lora(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of B over a frozen A.

    A round sends B down and B up, the components of the client's rank only. A is drawn from
    a seed that server and clients know, and is not charged. Clients keep no state.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; it receives B alone.
      server_tx: optimizer of B, given the negated mean update; None adds the mean update.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares `Factors`, of which B is trained.

    Raises:
      ValueError: at the start of a run, if anything but an adapter is to be trained.
    """
    server = servers.server_optimizer(server_tx or optax.sgd(1.0))

    def update(model, replica, state, data, ctx):
        start, end, metrics = factors.train(loss_fn, client_tx, replica, model, data, ctx, only="b")
        change, only_b = optax.tree.sub(end.b, start.b), replica._replace(a=None)
        bill = factors.bill_by_rank(only_b, only_b, data.rank)
        return algorithm.Upload(change, weigh_fn(data), bill), state, metrics

    def serve(value, state, shared):
        b, state = server.update(value, state, shared.b)
        return shared._replace(b=b), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: server.init(shared.b), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.Downlink(
            init=lambda shared: shared,
            encode=lambda shared: shared.b,
            receive=lambda b, replica: replica._replace(b=b),
        ),
        init=factors.split,
        deploy=factors.deploy,
        read=factors.read_change_of_b,
        value_like=lambda shared: shared.b,
        ranked=True,
    )
