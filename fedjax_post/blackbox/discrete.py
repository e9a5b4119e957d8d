"""Search over discrete prompts: evaluates losses, estimates gradients and draws candidates.

A prompt is int32 `[P]`, held by a model's `params` as `{"prompt": {"tokens": ...}}`. Prompts
are evaluated one after another (`lax.map`), never in parallel. Without compilation these loops
are plain Python loops, so that a hosted model can compute the losses.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_post.core.algorithm import SUMMED, ClientData, Context, Metrics, mean_of, sums_of
from fedjax_post.core.local import LossFn, over_steps

PyTree = Any


def with_tokens(tokens: jax.Array) -> PyTree:
    """Returns the parameters that hold a prompt of tokens `[P]`."""
    return {"prompt": {"tokens": tokens}}


def tokens_of(params: PyTree) -> jax.Array:
    """Returns the tokens `[P]` of parameters that hold a prompt of tokens.

    Raises:
      ValueError: if they hold anything else.
    """
    prompt = params.get("prompt", {}) if set(params) == {"prompt"} else {}
    if set(prompt) != {"tokens"}:
        raise ValueError(
            f"the search needs a discrete prompt and nothing else, got {sorted(params)} with "
            f"{sorted(prompt)}; set adapter=text_prompt"
        )
    return prompt["tokens"]


def ask_each(
    loss_fn: LossFn, prompts: jax.Array, model: PyTree, batch: PyTree, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Returns the losses `[M]` of prompts `[M, P]` on one batch, and their metrics.

    Metrics are means over the prompts, or sums for the metrics in `SUMMED`.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      prompts: int32 `[M, P]`, evaluated one after another.
      model: the model.
      batch: one batch.
      key: the key of every prompt's loss.
    """
    ask = lambda tokens: loss_fn(with_tokens(tokens), model, batch, key)
    losses, metrics = jax.lax.map(ask, prompts)
    total = jax.tree.map(lambda x: x.sum(axis=0), metrics)
    return losses, mean_of(total, prompts.shape[0])


def ask_visit(
    loss_fn: LossFn, prompts: jax.Array, model: PyTree, data: ClientData, ctx: Context
) -> tuple[jax.Array, Metrics]:
    """Returns the losses `[M]` of prompts `[M, P]` over all rows of a visit, and their metrics.

    A batch is weighted by the number of questions in it (its metric "queries"), and counts as one
    question without that metric.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, a mean over questions.
      prompts: int32 `[M, P]`.
      model: the model.
      data: `K_max` batches; those of masked steps are not evaluated.
      ctx: the visit's context; all prompts see the same keys.
    """

    def step(carry, batch, key):
        losses, metrics = ask_each(loss_fn, prompts, model, batch, key)
        count = metrics.get("queries", jnp.float32(prompts.shape[0]))
        means = {name: x for name, x in metrics.items() if name not in SUMMED}
        return carry, (count, optax.tree.scale(count, (losses, means)), sums_of(metrics))

    _, (count, weighed, summed) = over_steps(step, (), data, ctx)
    losses, means = optax.tree.scale(1 / jnp.maximum(count, 1), weighed)
    return losses, means | summed


def score_gradient(chosen: jax.Array, losses: jax.Array, probs: jax.Array) -> jax.Array:
    """Returns an estimate `[P, N]` of the derivative of the mean loss by each probability.

    Each place has its own independent distribution, from which the prompts were drawn. The
    estimate is Diao et al., TMLR 2023, arXiv:2201.08531, eq. 6 with the mean as baseline:

        1 / (I - 1) sum_k (loss_k - mean loss) [place i chose j in k] / probs_ij

    For every choice of positive probability, its expectation is the derivative of the mean loss,
    E[loss | place i chooses j], minus the mean loss; it is 0 for the other choices.

    Args:
      chosen: int32 `[I, P]`, indices of choices, I at least 2.
      losses: float32 `[I]`.
      probs: float32 `[P, N]`, the distributions; each row sums to 1.
    """
    picked = jax.nn.one_hot(chosen, probs.shape[1])  # [I, P, N]
    advantage = (losses - losses.mean()) / (losses.shape[0] - 1)
    total = jnp.einsum("k,kpn->pn", advantage, picked)
    return jnp.where(probs > 0, total / jnp.where(probs > 0, probs, 1), 0)


def onto_simplex() -> optax.GradientTransformation:
    """Returns a transformation after which each row of the parameters is a distribution.

    It projects the updated rows to the closest point of the probability simplex.
    """

    def update(updates, state, params):
        land = lambda u, p: jax.vmap(optax.projections.projection_simplex)(p + u) - p
        return jax.tree.map(land, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def draw_edits(key: jax.Array, length: int, candidates: jax.Array, *, num: int):
    """Returns places `[num]` and tokens `[num]` of single edits, drawn uniformly.

    No edit is drawn twice, unless fewer than `num` edits exist.

    Args:
      key: a PRNG key.
      length: P, the places of the prompt.
      candidates: int32 `[N]`, the tokens that may be inserted.
      num: edits to draw.
    """
    total = length * candidates.shape[0]
    index = jax.random.permutation(key, total)[jnp.arange(num) % total]
    return index // candidates.shape[0], candidates[index % candidates.shape[0]]


def frequent_tokens(
    documents: Iterable[Sequence[int]], num: int, *, excluded: Iterable[int] = ()
) -> np.ndarray:
    """Returns the most frequent tokens of public documents, int32 `[<= num]`, most frequent first.

    They serve as candidates for a prompt, after Diao et al., section 3.3, who keep the most
    frequent n-grams of high pointwise mutual information; here these are single tokens.

    >>> from fedjax_post.blackbox.discrete import frequent_tokens
    >>> print(frequent_tokens([[1, 5, 5, 7], [1, 5, 7]], 2, excluded=[1]))
    [5 7]

    Args:
      documents: token ids of public texts; never of clients' rows.
      num: how many tokens to return.
      excluded: ids that no prompt may contain, such as bos, eos and padding.
    """
    ids = np.array([token for document in documents for token in document], np.int64)
    counts = np.bincount(ids)
    left_out = [i for i in excluded if i < len(counts)]
    counts[left_out] = 0
    order = np.argsort(-counts, kind="stable")[:num]
    return order[counts[order] > 0].astype(np.int32)


def finite_weight(weight: jax.Array, loss: jax.Array) -> jax.Array:
    """Returns the weight, or NaN if the loss is not finite, so that the engine drops the client.

    For uploads of tokens, which stay finite even if the loss is not.
    """
    return jnp.where(jnp.isfinite(loss), weight, jnp.nan)
