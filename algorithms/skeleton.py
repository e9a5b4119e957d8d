"""Skeleton: copy this file to write an algorithm; the last paragraph describes what it computes.

Six steps, a few minutes each:

1. Copy this file to `my_algorithms.py`, anywhere on the Python path, and rename the factory.
   State the paper, its equations and every deviation here, in the file's head.
2. Decide what is *shared* (any tree: parameters, a pair, a vector of scalars), what a
   client keeps (its *state*), and what it sends (an `Upload`: a value and a weight).
3. Write `update` for one client, as if there were no other: the engine maps it over clients,
   drops what is not finite, masks padding and counts bytes. Local training is `local_steps`, whose
   optimizer may be an `optax.chain` with links such as `add_proximal` and `add_control`.
4. Choose the aggregate (`weighted_mean`, or a rule of `core.robust`) and the server
   (`server_optimizer`, or a `Server` of your own). `init` turns parameters into what is shared,
   and `deploy` turns that into a model again.
5. Test it against the contract, and against a law of its own: what it equals where its defining
   term is zero, and what fails without that term.

       for check in testing.CHECKS.values():
           check(testing.Case(my_algorithm(testing.toy_loss, optax.sgd(0.05))))

6. Run it, then compare it with others. The annotations of `fedjax_post.core.world` declare what
   the program passes to it, whatever the arguments are called; all other arguments are flags:

       python -m experiments.train --algorithm=my_algorithms:my_algorithm --keep=0.3
       python -m experiments.compare --algorithms=fed_avg,my_algorithms:my_algorithm

   To register it here: one line in `algorithms/__init__.py`, one in the contract suite.

In this example, a client sends its change plus a share of the change that it sent last,

    u_k <- (y_k - x) + keep u_k,    x <- x + sum_k p_k u_k

where y_k is the end of its local steps. keep = 0 is FedAvg.
"""

import optax

from fedjax_post.core import aggregates, algorithm, local, servers, world


def skeleton(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    keep: float = 0.3,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging with momentum on each client; describe your algorithm here.

    A round sends one copy of the parameters down and one up. Clients keep one copy.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, the mean loss of one batch.
      client_tx: the local optimizer, fresh at every visit.
      keep: share of a client's last change that it sends again, in [0, 1); 0 is FedAvg.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that shares the parameters themselves.

    Raises:
      ValueError: if `keep` is outside [0, 1).
    """
    if isinstance(keep, int | float) and not 0 <= keep < 1:
        raise ValueError(f"keep must be in [0, 1), got {keep}; 0 is FedAvg")

    def init(model, replica, key):
        return optax.tree.zeros_like(replica)  # u_k

    def update(model, replica, u_k, data, ctx):
        y_k, _, metrics = local.local_steps(loss_fn, client_tx, replica, model, data, ctx)
        u_k = optax.tree.add_scale(optax.tree.sub(y_k, replica), keep, u_k)
        return algorithm.Upload(u_k, weigh_fn(data)), u_k, metrics

    return algorithm.Algorithm(
        client=algorithm.Client(init, update),
        server=servers.server_optimizer(optax.sgd(1.0)),
        aggregate=aggregates.weighted_mean(),
        read=algorithm.as_change,  # for the records: the value is a change of the replica
    )
