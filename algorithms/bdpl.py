"""BDPL: a distribution over words for each place of a prompt, learned from losses alone.

Diao et al., "Black-box Prompt Learning for Pre-trained Language Models", TMLR 2023,
arXiv:2201.08531, Algorithm 1: a step draws I prompts from probabilities p_ij of candidate j at
place i, asks for their losses on one batch, and moves along

    g_ij = 1 / (I - 1) sum_k (loss_k - mean loss) [place i chose j in k] / p_ij
    p <- the closest point of the simplex to p - (the optimizer's step for clipped g)

The server averages the changes of the probabilities, as in Wang et al., "FedOne: Query-Efficient
Federated Learning for Black-box Discrete Prompt Learning", ICML 2025, arXiv:2506.14929, Algorithm
1. FedOne is this algorithm with one client a round: with more, the number of queries grows with
the cohort, and the rate of convergence does not. The code of both papers also divides by p_ij,
with a minus, for the choices not drawn. Over the I prompts those terms sum to the term above once
more, so that its g is twice this one, up to rounding; FedOne's `zero` method is this one.

Deviations: the optimizer is fresh at every visit, where FedOne's clients keep theirs; the
projection is exact, where the code bisects 20 times, and the server repeats it. Candidate 0 of
each place is the first prompt's own token, and may be likelier than the others at the start; with
`first_share = 0` all candidates start alike, as in the papers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.blackbox import discrete
from fedjax_post.core import access, aggregates, algorithm, forward, local, world


class Shared(NamedTuple):
    """What server and clients hold; only the probabilities are sent."""

    choices: jax.Array  # [P, N + 1], int32: tokens; set up with the model
    probs: jax.Array  # [P, N + 1], float32: each row adds to 1


def bdpl(
    loss_fn: world.LossFn,
    client_tx: world.ClientTx,
    *,
    candidates: world.Candidates,
    num_samples: int = 20,
    first_share: float = 0.5,
    max_norm: float = 3.0,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Learns the tokens of a prompt by policy gradient; a visit asks `num_samples` times a row.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, over a prompt of tokens.
      client_tx: the local optimizer of the probabilities, fresh at every visit.
      candidates: int32 `[N]`, tokens that a prompt may contain beside those of the first one.
      num_samples: I, prompts drawn in a step, at least 2.
      first_share: first probability of the first prompt's own tokens; 0 is uniform.
      max_norm: the gradient is scaled down to this Euclidean norm.
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that needs LOGITS, sends 4 P (N + 1) bytes each way for a prompt of P
      tokens, and deploys the likeliest token of each place.

    Raises:
      ValueError: if `num_samples` is below 2 or `first_share` is outside [0, 1).
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    if not 0 <= first_share < 1:
        raise ValueError(f"first_share must be in [0, 1), got {first_share}; 0 is uniform")
    tx = optax.chain(optax.clip_by_global_norm(max_norm), client_tx, discrete.onto_simplex())

    def update(model, replica, state, data, ctx):
        def estimate(probs, model, batch, key):
            draw_key, loss_key = jax.random.split(key)
            shape = num_samples, probs.shape[0]
            chosen = jax.random.categorical(draw_key, jnp.log(probs), axis=-1, shape=shape)
            prompts = jnp.take_along_axis(replica.choices[None], chosen[..., None], axis=2)[..., 0]
            losses, metrics = discrete.ask_each(loss_fn, prompts, model, batch, loss_key)
            return discrete.score_gradient(chosen, losses, probs), metrics

        learned = forward.from_estimate(estimate)
        end, _, metrics = local.local_steps(learned, tx, replica.probs, model, data, ctx)
        return algorithm.Upload(end - replica.probs, weigh_fn(data)), state, metrics

    def serve(change, state, shared):
        probs = jax.vmap(optax.projections.projection_simplex)(shared.probs + change)
        return shared._replace(probs=probs), state

    def deploy(model, replica, state=None):
        best = jnp.argmax(replica.probs, axis=1)
        tokens = jnp.take_along_axis(replica.choices, best[:, None], axis=1)[:, 0]
        return model, discrete.with_tokens(tokens)

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.Downlink(
            lambda shared: shared,
            lambda shared: shared.probs,
            lambda probs, replica: replica._replace(probs=probs),
        ),
        init=lambda params: _start(discrete.tokens_of(params), candidates, first_share),
        deploy=deploy,
        access={"target": access.Access.LOGITS},
        value_like=lambda shared: shared.probs,
        read=lambda change, replica: algorithm.as_change(change, replica.probs),
    )


def _start(tokens: jax.Array, candidates: jax.Array, first_share: float) -> Shared:
    shape = len(tokens), len(candidates)
    first = first_share or 1 / (len(candidates) + 1)
    others = jnp.broadcast_to(jnp.asarray(candidates, jnp.int32), shape)
    rest = jnp.full(shape, (1 - first) / len(candidates), jnp.float32)
    probs = jnp.concatenate([jnp.full((len(tokens), 1), first, jnp.float32), rest], axis=1)
    return Shared(jnp.concatenate([tokens[:, None], others], axis=1), probs)
