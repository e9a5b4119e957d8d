"""FwdLLM: gradients from perturbed forward passes, as many as their variance requires.

Xu et al., "FwdLLM: Efficient Federated Finetuning of Large Language Models with Perturbed
Inferences", USENIX ATC 2024, arXiv:2308.13894; where the paper leaves something open, the
authors' code. A client measures the slope along a direction v and sends

    g = (f(x + h v) - f(x - h v)) / (2 h) v,    h = 0.01

*Discriminative sampling*: v is, for each tensor, the one of several normal candidates with the
greatest cosine to the last step's gradient. *Variance-controlled pacing*: the server gathers
gradients at one x over as many rounds as necessary, in two halves, until

    1/2 mean over entries of (mean of one half - mean of the other)^2 <= max_variance

Only then does it step, x <- x - eta (mean of all), and begin to gather again.

Deviations: a client is assigned to either half by a fair coin; the code cuts its list of
gradients in the middle. The variance is over all trained entries, in the code over those of one
layer. The best of each `num_candidates` is taken, in the code the best tenth of them all. The
last gradient is used in every step, in the code in every second one. A round that continues to
gather draws a new cohort and new batches; the code asks for the same ones again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.blackbox.directions import nearest_direction
from fedjax_post.blackbox.halves import Answer, Gathered, halves, no_answers, variance
from fedjax_post.core import access, algorithm, forward, local, world


class Shared(NamedTuple):
    """What the server holds; the gathered gradients are not sent."""

    params: algorithm.PyTree  # x
    last: algorithm.PyTree  # the gradient of the last step
    gathered: Gathered


class Replica(NamedTuple):
    """What every client holds."""

    params: algorithm.PyTree
    last: algorithm.PyTree


def fwd_llm(
    loss_fn: world.LossFn,
    *,
    server_lr: world.ServerLr = 0.01,
    server_tx: world.ServerTx | None = None,
    max_variance: float = 0.1,
    num_candidates: int = 10,
    epsilon: float = 0.01,
) -> algorithm.Algorithm:
    """Gradient descent on forward gradients, each step on those of one cohort or more.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      server_lr: eta.
      server_tx: optimizer in place of `sgd(server_lr)`; it receives the mean gradient.
      max_variance: gradients are gathered until they vary by no more; inf steps every round.
      num_candidates: directions among which one is chosen, at least 1, which takes any.
      epsilon: h, positive.

    Returns:
      An algorithm that needs WEIGHTS. A round sends two trees down, and one tree and a byte up.
      A visit has one direction for each batch. Clients keep no state and have equal weights.

    Raises:
      ValueError: if a setting is not positive.
    """
    if min(max_variance, num_candidates, epsilon) <= 0:
        raise ValueError(
            f"max_variance, num_candidates and epsilon must be positive, got {max_variance}, "
            f"{num_candidates} and {epsilon}"
        )
    slope_fn = forward.central_difference(loss_fn, epsilon)
    tx = server_tx or optax.sgd(server_lr)

    def update(model, replica, state, data, ctx):
        coin_key, key = jax.random.split(ctx.key)

        def answer(batch, key):
            v_key, loss_key = jax.random.split(key)
            v = nearest_direction(v_key, replica.last, num_candidates=num_candidates)
            slope, metrics = slope_fn(replica.params, v, model, batch, loss_key)
            return optax.tree.scale(slope, v), metrics

        gradient, metrics = local.mean_over_steps(answer, data, ctx._replace(key=key))
        second = jax.random.bernoulli(coin_key).astype(jnp.uint8)
        return algorithm.Upload(Answer(gradient, second), local.uniformly(data)), state, metrics

    def serve(new, opt_state, shared):
        gathered, nothing = optax.tree.add(shared.gathered, new), no_answers(shared.params)
        mean = jax.tree.map(lambda s: s.sum(0) / gathered.weight.sum(), gathered.gradient)
        updates, moved = tx.update(mean, opt_state, shared.params)
        step = Shared(optax.apply_updates(shared.params, updates), mean, nothing)
        wait = shared._replace(gathered=gathered)
        enough = (variance(gathered) <= max_variance) | jnp.isinf(max_variance)
        pick = lambda one, other: jnp.where(enough, one, other)
        return jax.tree.map(pick, (step, moved), (wait, opt_state))

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: tx.init(shared.params), serve),
        aggregate=halves(),
        downlink=algorithm.Downlink(
            lambda s: Replica(s.params, s.last),
            lambda s: Replica(s.params, s.last),
            lambda message, replica: message,
        ),
        init=lambda params: Shared(params, optax.tree.zeros_like(params), no_answers(params)),
        deploy=lambda model, replica, state=None: (model, replica.params),
        access={"target": access.Access.WEIGHTS},
    )
