"""A prompt search by the whole federation: all clients judge the same edits of one prompt.

It edits a prompt token by token by the loss of answers alone, as FedDTPT does (Wu et al., 2024,
arXiv:2411.00985), and derives the edits of a round from its number, as FedKSeed does for
directions (Qin et al., ICML 2024, arXiv:2312.06353), so that server and clients can draw them.
A client sends what each edit costs it,

    l_km = loss of client k's rows under edit m of the prompt, m = 0 the prompt as it is,
    the next prompt is the edit of least sum_k p_k l_km

which is the best step on the federation's own loss, not a vote among the clients' best steps:
where clients have different labels, it counts what an edit that favours one client's label costs
the others. It uses only answers in text. It is this project's own and follows no paper.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.blackbox import discrete
from fedjax_post.core import access, aggregates, algorithm, local, world


class Shared(NamedTuple):
    """The prompt, and the number of rounds so far."""

    tokens: jax.Array  # [P], int32
    served: jax.Array  # (), int32: rounds so far; the edits of the next one follow from it


def fed_prompt_search(
    loss_fn: world.LossFn,
    *,
    candidates: world.Candidates,
    num_edits: int = 16,
    weigh_fn: world.WeighFn = local.by_examples,
) -> algorithm.Algorithm:
    """Steepest descent over single edits of a prompt, among those that a round draws.

    A visit asks `num_edits` + 1 times for each of its rows. A round that draws all P N edits
    takes the best of them.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, over a prompt of tokens.
      candidates: int32 `[N]`, tokens that an edit may insert.
      num_edits: edits of a round, at least 1.
      weigh_fn: `(ClientData) -> ()`, the weight of a client's losses.

    Returns:
      An algorithm that needs TEXT, sends 4 (P + 1) bytes down and 4 (`num_edits` + 1) up.

    Raises:
      ValueError: if `num_edits` is below 1.
    """
    if num_edits < 1:
        raise ValueError(f"num_edits must be at least 1, got {num_edits}")
    candidates = jnp.asarray(candidates, jnp.int32)

    def prompts_of(shared):
        key = jax.random.fold_in(jax.random.key(0), shared.served)
        places, tokens = discrete.draw_edits(key, len(shared.tokens), candidates, num=num_edits)
        edited = jax.vmap(lambda place, token: shared.tokens.at[place].set(token))(places, tokens)
        return jnp.concatenate([shared.tokens[None], edited])

    def update(model, replica, state, data, ctx):
        losses, metrics = discrete.ask_visit(loss_fn, prompts_of(replica), model, data, ctx)
        return algorithm.Upload(losses, weigh_fn(data)), state, metrics

    def serve(losses, state, shared):
        prompts = prompts_of(shared)
        return Shared(prompts[jnp.argmin(losses)], shared.served + 1), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        init=lambda params: Shared(discrete.tokens_of(params), jnp.int32(0)),
        deploy=lambda model, replica, state=None: (model, discrete.with_tokens(replica.tokens)),
        access={"target": access.Access.TEXT},
        value_like=lambda shared: jnp.zeros(num_edits + 1),
        refuses=dict.fromkeys(
            (algorithm.Around.MEMORY, algorithm.Around.STALE),
            "the losses of a round belong to its own edits",
        ),
    )
