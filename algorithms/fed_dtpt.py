"""FedDTPT: clients edit a prompt word by word, the server merges their prompts.

Wu et al., "FedDTPT: Federated Discrete and Transferable Prompt Tuning for Black-Box Large
Language Models", 2024, arXiv:2411.00985, Algorithms 1 and 2. It uses only answers in text. A
client edits tokens of the prompt that it was sent and keeps an edit if more of its questions are
answered correctly; the server weights each token by its similarity to the tokens of the other
clients' prompts, clusters the tokens, and takes the top token of a cluster, in the order of the
prompts.

Deviations:
- edits and their places are drawn at random, edits from a public list of tokens, in place of a
  second language model's proposals; with `common` they are the same for all clients of a round,
  since edits that no two clients share cannot find a majority;
- an edit is judged by the loss on all rows of the visit, the client's own; the paper adds a
  balanced public set, which a federation may not have;
- the prompt keeps its length, so that a cluster joins tokens of one place, and each place keeps
  the top token of its heaviest cluster (`blackbox.consensus`); similarity is that of a table
  of embeddings, without context. Without a table it is a vote at each place.
"""

import jax
import jax.numpy as jnp

from fedjax_post.blackbox import consensus, discrete
from fedjax_post.core import access, aggregates, algorithm, local, world


def fed_dtpt(
    loss_fn: world.LossFn,
    *,
    candidates: world.Candidates,
    embeddings: world.Embeddings | None = None,
    num_edits: int = 16,
    common: bool = True,
    weigh_fn: world.WeighFn = local.by_examples,
) -> algorithm.Algorithm:
    """Hill climbing by each client over the tokens of a prompt, merged by a semantic vote.

    A visit asks `num_edits` + 1 times for each of its rows.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, over a prompt of tokens.
      candidates: int32 `[N]`, tokens that an edit may insert.
      embeddings: float `[V, D]`, public, such as those of a small open model; None: a plain vote.
      num_edits: edits that a visit tries, one after another, at least 1.
      common: whether all clients of a round try the same edits.
      weigh_fn: `(ClientData) -> ()`, the weight of a client's prompt.

    Returns:
      An algorithm that needs TEXT and shares a prompt, 4 bytes a token each way. The server
      holds the prompts of a whole cohort.

    Raises:
      ValueError: if `num_edits` is below 1.
    """
    if num_edits < 1:
        raise ValueError(f"num_edits must be at least 1, got {num_edits}")
    candidates = jnp.asarray(candidates, jnp.int32)

    def update(model, replica, state, data, ctx):
        key = jax.random.fold_in(jax.random.key(0), ctx.round) if common else ctx.key
        edits = discrete.draw_edits(key, len(replica), candidates, num=num_edits)

        def ask(tokens):
            losses, metrics = discrete.ask_visit(loss_fn, tokens[None], model, data, ctx)
            return losses[0], metrics

        def attempt(best, edit):
            place, token = edit
            tokens = best[0].at[place].set(token)
            loss, metrics = ask(tokens)
            keep = lambda new, old: jnp.where(loss < best[1][0], new, old)
            new = tokens, (loss, metrics)
            return jax.tree.map(keep, new, best), algorithm.sums_of(metrics)

        first = ask(replica)
        (tokens, (_, metrics)), sums = jax.lax.scan(attempt, (replica, first), edits)
        sums = jax.tree.map(lambda x, more: x + more.sum(), algorithm.sums_of(first[1]), sums)
        weight = discrete.finite_weight(weigh_fn(data), first[0])
        return algorithm.Upload(tokens, weight), state, metrics | sums

    def serve(stacked, state, shared):
        prompts, weights = stacked
        return consensus.agree(prompts, weights, embeddings), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.stack(),
        init=discrete.tokens_of,
        deploy=lambda model, replica, state=None: (model, discrete.with_tokens(replica)),
        access={"target": access.Access.TEXT},
        refuses={
            algorithm.Around.MEMORY: "clients send tokens, not a change",
            algorithm.Around.LINK: "tokens are not numbers that a link could compress",
        },
    )
