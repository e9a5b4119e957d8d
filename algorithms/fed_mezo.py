"""FedMeZO and forward gradients: FedAvg whose clients never back-propagate.

`fed_mezo`: Ling et al., "On the Convergence of Zeroth-Order Federated Tuning for Large
Language Models", KDD 2024, arXiv:2402.05926: every local step is MeZO's,

    y <- y - eta (f(y + eps z) - f(y - eps z)) / (2 eps) z,    z normal

`fed_fwd`: the forward gradients of Xu et al., "FwdLLM: Efficient Federated Finetuning of
Large Language Models with Perturbed Inferences", USENIX ATC 2024, arXiv:2308.13894:
<grad f(y), z> z in its place. Both send whole updates, as FedAvg does.

FedMeZO's code in FederatedScope takes the same step, by SGD with weight decay.

Deviations: any local optimizer may take the step, and n directions may be averaged.
FwdLLM estimates its derivative by a difference of 0.01, where this computes it exactly, and adds
two things that are not here but in `fwd_llm`: directions chosen by their angle to the last
gradient, and a number of them that depends on their variance.
"""

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.core import access, algorithm, forward, local, world


def fed_mezo(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    epsilon: float = 1e-3,
    num_directions: int = 1,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAvg by central differences; weights are read and changed, nothing is differentiated.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; it receives the estimated gradient.
      epsilon: half the distance between the two points, in units of a direction, positive.
      num_directions: directions a step, at least 1; each costs two forward passes.
      server_tx: as in `fed_avg`.
      weigh_fn: as in `fed_avg`.

    Returns:
      An algorithm that needs WEIGHTS, at FedAvg's communication cost.
    """
    estimated = forward.two_point(loss_fn, epsilon=epsilon, num_directions=num_directions)
    base = fed_avg(estimated, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
    return base._replace(access={"target": access.Access.WEIGHTS})


def fed_fwd(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    num_directions: int = 1,
    server_tx: world.ServerTx | None = None,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """FedAvg by forward-mode derivatives, which keep no activations.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      client_tx: the local optimizer; it receives the estimated gradient.
      num_directions: directions a step, at least 1; each costs about two forward passes.
      server_tx: as in `fed_avg`.
      weigh_fn: as in `fed_avg`.

    Returns:
      An algorithm at FedAvg's communication cost.
    """
    estimated = forward.forward_gradient(loss_fn, num_directions=num_directions)
    return fed_avg(estimated, client_tx, server_tx=server_tx, weigh_fn=weigh_fn)
