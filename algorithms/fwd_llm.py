"""FwdLLM: gradients from perturbed forward passes, as many as their variance asks for.

Xu et al., "FwdLLM: Efficient Federated Finetuning of Large Language Models with Perturbed
Inferences", USENIX ATC 2024, arXiv:2308.13894; where it leaves something open, the
authors' code. A client measures the slope along a direction v and answers

    g = (f(x + h v) - f(x - h v)) / (2 h) v,    h = 0.01

*Discriminative sampling*: of some normal candidates, v is, tensor by tensor, the one of the
greatest cosine to the last step's gradient. *Variance-controlled pacing*: answers are
gathered at one x over as many rounds as it takes, in two halves, until

    1/2 mean over entries of (mean of one half - mean of the other)^2 <= max_variance

and only then the server steps, x <- x - eta (mean of all), and begins anew.

Deviations: a client falls into either half by a fair coin; the code cuts its list of
answers in the middle. The variance is over all trained entries, there over one layer's. The
best of each `num_candidates` is taken, there the best tenth of them all. The last gradient
is used in every step, there in every other one. A round that goes on gathering draws a new
cohort and new batches, there the same ones are asked again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import access, aggregates, algorithm, forward, local, world


class Answer(NamedTuple):
    """What a client sends."""

    gradient: algorithm.PyTree
    second: jax.Array  # (), uint8: 1 in the second half, 0 in the first


class Gathered(NamedTuple):
    """Sums over the answers of each half."""

    gradient: algorithm.PyTree  # leaves [2, ...]
    weight: jax.Array  # [2], float32


class Shared(NamedTuple):
    """What the server holds; the answers stay there."""

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
    """Gradient descent on forward gradients, with a cohort's worth of them or more a step.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      server_lr: eta.
      server_tx: optimizer in the place of `sgd(server_lr)`; it sees the mean gradient.
      max_variance: answers are gathered until they vary by no more; inf steps every round.
      num_candidates: directions among which one is chosen, at least 1, which takes any.
      epsilon: h, positive.

    Returns:
      An algorithm that needs WEIGHTS. A round sends two trees down, and up one and a byte. A
      visit's batches give one direction each; clients keep no state and count alike.

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
            v = chosen_direction(v_key, replica.last, num_candidates)
            slope, metrics = slope_fn(replica.params, v, model, batch, loss_key)
            return optax.tree.scale(slope, v), metrics

        gradient, metrics = local.mean_over_steps(answer, data, ctx._replace(key=key))
        second = jax.random.bernoulli(coin_key).astype(jnp.uint8)
        return algorithm.Upload(Answer(gradient, second), local.uniformly(data)), state, metrics

    def serve(new, opt_state, shared):
        gathered = optax.tree.add(shared.gathered, new)
        mean = jax.tree.map(lambda s: s.sum(0) / gathered.weight.sum(), gathered.gradient)
        updates, moved = tx.update(mean, opt_state, shared.params)
        step = Shared(optax.apply_updates(shared.params, updates), mean, _nothing(shared.params))
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
        init=lambda params: Shared(params, optax.tree.zeros_like(params), _nothing(params)),
        deploy=lambda model, replica, state=None: (model, replica.params),
        access={"target": access.Access.WEIGHTS},
    )


def halves() -> algorithm.Aggregate:
    """Sums `Answer`s by halves, as a `Gathered`."""

    def add(total, answers, weights):
        shares = jnp.stack([weights * (answers.second == half) for half in (0, 1)])
        share = lambda g: aggregates.weighted_sum(shares, aggregates.present(g, weights))
        new = jax.tree.map(share, answers.gradient)
        return optax.tree.add(total, Gathered(new, shares.sum(1)))

    init = lambda like, cohort_size: _nothing(like.gradient)
    return algorithm.Aggregate(init, add, optax.tree.add, lambda total: total)


def variance(gathered: Gathered) -> jax.Array:
    """Mean over entries of the variance of the two halves' means; inf while one is empty."""
    weight = jnp.where(gathered.weight > 0, gathered.weight, 1)
    means = jax.tree.map(lambda s: jax.vmap(jnp.divide)(s, weight), gathered.gradient)
    squares = optax.tree.norm(jax.tree.map(lambda m: m[0] - m[1], means), squared=True)
    size = sum(leaf[0].size for leaf in jax.tree.leaves(means))
    return jnp.where((gathered.weight > 0).all(), squares / (2 * size), jnp.inf)


def chosen_direction(
    key: jax.Array, last: algorithm.PyTree, num_candidates: int
) -> algorithm.PyTree:
    """A normal direction: of some, the nearest to `last` by cosine, tensor by tensor."""
    drawn = jax.vmap(lambda k: forward.random_direction(k, last))(
        jax.random.split(key, num_candidates)
    )

    def nearest(v, g):
        rows = v.reshape(num_candidates, -1)
        return v[jnp.argmax(rows @ g.ravel() / jnp.linalg.norm(rows, axis=1))]

    return jax.tree.map(nearest, drawn, last)


def _nothing(params: algorithm.PyTree) -> Gathered:
    return Gathered(jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params), jnp.zeros(2))
