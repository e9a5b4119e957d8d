"""FedRep: a shared body, and a head that stays with its client.

Collins et al., "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, arXiv:2102.07078, Algorithm 1 (FedRep). At a visit client k first
trains its head h_k under the body as it was sent, then the body under the new head;
only the body is sent. A pattern decides which parameters are the head: the last layer as in the
paper, the B factors of LoRA, the biases.

Deviations: as many head steps as body steps, both over the batches of the visit, where
the authors' experiments give the head more; any algorithm may learn the body.
With as many, the authors' code gives the same body and heads.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, parts, world
from fedjax_post.core.patterns import check_bounded


class Parts(NamedTuple):
    """A body and a head: what the server shares, the replica, and a client's state."""

    body: algorithm.PyTree  # as the algorithm of the shared part has it
    head: algorithm.PyTree  # parameters; None where the body has them


def local_part(
    make_fn: Callable[[local.LossFn], algorithm.Algorithm],
    loss_fn: world.LossFn,
    *,
    client_tx: world.ClientTx,
    is_local: Callable[[str], bool],
) -> algorithm.Algorithm:
    """Applies any algorithm to a part of the parameters; the rest stays with each client.

    Args:
      make_fn: `(loss_fn) -> Algorithm`, given a loss of the shared part of the parameters.
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: optimizer of the local part, fresh at every visit.
      is_local: `(path) -> bool`, whether a parameter such as "lora/layers/q/b" is local.

    Returns:
      An algorithm that sends what the algorithm of `make_fn` sends for the shared part alone,
      and whose clients keep the local part. All start from the local part of the first
      parameters, which is set up with the model and not charged.
    """
    # for `base`, the "model" is the pair of the model and the client's head
    base = make_fn(lambda body, pair, *rest: loss_fn(parts.join(body, pair[1]), pair[0], *rest))

    def start(params):
        body, head = parts.split(params, is_local)
        return Parts(base.init(body), head)

    def init(model, replica, key):
        pair = model, replica.head
        return Parts(base.client.init(pair, replica.body, key), replica.head)

    def update(model, replica, state, data, ctx):
        body = base.deploy((model, state.head), replica.body)[1]
        head_loss = lambda head, *rest: loss_fn(parts.join(body, head), *rest)
        head, _, _ = local.local_steps(head_loss, client_tx, state.head, model, data, ctx)
        pair = model, head
        upload, inner, metrics = base.client.update(pair, replica.body, state.body, data, ctx)
        return upload, Parts(inner, head), metrics

    def serve(value, state, shared):
        body, state = base.server.update(value, state, shared.body)
        return shared._replace(body=body), state

    def deploy(model, replica, state=None):
        inner, head = (None, replica.head) if state is None else state
        (model, _), body = base.deploy((model, head), replica.body, inner)
        return model, parts.join(body, head)

    return base._replace(
        client=algorithm.Client(init, update),
        server=algorithm.Server(lambda shared: base.server.init(shared.body), serve),
        downlink=algorithm.Downlink(
            init=lambda shared: shared._replace(body=base.downlink.init(shared.body)),
            encode=lambda shared: base.downlink.encode(shared.body),
            receive=lambda message, replica: replica._replace(
                body=base.downlink.receive(message, replica.body)
            ),
        ),
        init=start,
        deploy=deploy,
        read=lambda value, replica: base.read(value, replica.body),
        value_like=lambda shared: base.value_like(shared.body),
    )


def fed_rep(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    local_pattern: str = "/b$",
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedRep: `local_part` over `fed_avg`, with one local optimizer for both parts.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer of the head and of the body.
      local_pattern: regular expression that finds the paths of the local parameters.
      server_tx: as in `fed_avg`.
      weigh_fn: as in `fed_avg`.

    Returns:
      As `local_part`.
    """
    check_bounded("local_pattern", local_pattern)
    make_fn = lambda loss: fed_avg(loss, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
    is_local = lambda path: re.search(local_pattern, path) is not None
    return local_part(make_fn, loss_fn, client_tx=client_tx, is_local=is_local)
