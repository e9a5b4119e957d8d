"""FedOT: offsite-tuning in a federation, on a stand-in for a model that stays with its owner.

Xiao et al., "Offsite-Tuning: Transfer Learning without Full Model", 2023, arXiv:2302.04870,
averaged as in FederatedScope-LLM (Kuang et al., KDD 2024, arXiv:2309.00363).

    each client:  y_k = local steps from x on the stand-in, of its true first and last layers
    server:       x <- x + sum p_k (y_k - x)
    owner:        the target with x in place of its own first and last layers

Only the owner runs the target, and no row leaves a client. The federation obtains the ends x:
without the owner, it can use them only in the stand-in. The paper's control, the tuned emulator
alone, is `plug_in=False`.

Deviations: clients train factors of the ends, or their weights, as `params` decide; the paper
trains weights, adapters or factors. Weights cost a client a copy of the stand-in's stacks.
"""

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import algorithm, local, world
from fedjax_post.core.access import Access


def offsite_tuning(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    plug_in: bool = True,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of the ends of a stand-in, which are deployed in its target.

    With a stand-in that drops no layer it is FedAvg of the target's first and last layers. A
    round sends the ends down and up; the stand-in itself is handed out once, before the run,
    and is not in the record (`model.emulator.emulator_bytes`).

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`; its model is the stand-in's.
      client_tx: the local optimizer of the ends, fresh at every visit.
      plug_in: whether the ends are served in the target; otherwise in the stand-in, which has no
        files of its own, so that it is scored and not exported.
      server_tx: optimizer that receives the negated mean update; None adds the mean update.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm for models {'emulator': an `Emulator`, 'target': the model it stands in for}
      that shares the ends, `Emulator.ends(params)`. Only `deploy` uses the target.
    """

    def loss(ends, models, batch, key):
        emulator = models["emulator"]
        return loss_fn(emulator.spread(ends), emulator.model, batch, key)

    def deploy(models, replica, state=None):
        del state
        target, emulator = models["target"], models["emulator"]
        if not plug_in:
            return emulator.model, emulator.spread(replica)
        return target, emulator.plug(target, replica)

    base = fed_avg(loss, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
    return base._replace(deploy=deploy, access={"emulator": Access.GRADIENTS})
