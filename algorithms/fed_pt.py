"""FedPT: a federation tunes a small open model, whose change steers a large closed one.

Gao et al., "FedPT: Federated Proxy-Tuning of Large Language Models on Resource-Constrained
Edge Devices", 2024, arXiv:2410.00362, based on proxy-tuning (Liu et al., COLM 2024,
arXiv:2401.08565).

    each client:  y_k = local steps from x on the proxy
    server:       x <- x + sum p_k (y_k - x)
    served:       logits = target + alpha (proxy with x - proxy)

Training does not use the target. Serving asks it for the logits of every token.

Deviations: the paper's server also distils the steered model into the proxy between rounds, on
text of its own; this is left out, so that the shared parameters are what clients trained.
"""

from fedjax_post.adapters.steered import steer
from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, world
from fedjax_post.core.access import Access


def fed_pt(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    proxy_alpha: float = 1.0,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of a proxy, which steers the target when it is served.

    With proxy_alpha = 0 the target itself is served. A round sends the proxy's parameters down
    and up; the proxy itself is open and handed out once.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`; its model is the proxy.
      client_tx: the local optimizer, fresh at every visit.
      proxy_alpha: strength with which the target is steered; 1 in the paper.
      server_tx: optimizer that receives the negated mean update; None adds the mean update.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm for models {'target': open to LOGITS, 'proxy': open to GRADIENTS} of one
      vocabulary, that shares the proxy's parameters. Deployed, the model is a `Steered`.
    """

    def loss(params, models, batch, key):
        return loss_fn(params, models["proxy"], batch, key)

    def deploy(models, replica, state=None):
        del state
        return steer(models["target"], models["proxy"], alpha=proxy_alpha), replica

    base = fed_avg(loss, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
    access = {"target": Access.LOGITS, "proxy": Access.GRADIENTS}
    return base._replace(deploy=deploy, access=access)
