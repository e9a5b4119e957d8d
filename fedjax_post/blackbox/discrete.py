"""Search over prompts of tokens: asking for losses, learning from them, choosing candidates.

A prompt is int32 `[P]`, held by a model's `params` as `{"prompt": {"tokens": ...}}`. Prompts
are asked one after another (`lax.map`), never side by side, so that without compilation the
loops are plain ones, whose losses a model elsewhere can answer.
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
    """The parameters of a prompt of tokens `[P]`."""
    return {"prompt": {"tokens": tokens}}


def tokens_of(params: PyTree) -> jax.Array:
    """The tokens `[P]` that parameters hold, and nothing else.

    Raises:
      ValueError: if they hold anything but one prompt of tokens.
    """
    prompt = params.get("prompt", {}) if set(params) == {"prompt"} else {}
    if set(prompt) != {"tokens"}:
        raise ValueError(
            f"a discrete prompt is all that is searched, got {sorted(params)} with "
            f"{sorted(prompt)}; set adapter=text_prompt"
        )
    return prompt["tokens"]


def ask_each(
    loss_fn: LossFn, prompts: jax.Array, model: PyTree, batch: PyTree, key: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Losses `[M]` of prompts `[M, P]` on one batch, one after another, and what they told.

    Metrics are means over the prompts, sums for those of `SUMMED`.
    """
    ask = lambda tokens: loss_fn(with_tokens(tokens), model, batch, key)
    losses, metrics = jax.lax.map(ask, prompts)
    total = jax.tree.map(lambda x: x.sum(axis=0), metrics)
    return losses, mean_of(total, prompts.shape[0])


def ask_visit(
    loss_fn: LossFn, prompts: jax.Array, model: PyTree, data: ClientData, ctx: Context
) -> tuple[jax.Array, Metrics]:
    """Losses `[M]` of prompts `[M, P]` over all rows of a visit, and what they told.

    A batch counts by the questions in it, its metric "queries"; without that metric as one.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, a mean over questions.
      prompts: int32.
      model: the model.
      data: `K_max` batches; those of steps that are not taken are not asked.
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
    """An estimate `[P, N]` of how the mean loss depends on the probabilities of each choice.

    With one independent distribution for each place, and losses of prompts that were drawn
    from them, Diao et al., TMLR 2023, arXiv:2201.08531, eq. 6 with the mean for a baseline:

        1 / (I - 1) sum_k (loss_k - mean loss) [place i chose j in k] / probs_ij

    Its mean is the derivative of the mean loss, E[loss | place i chooses j], minus the mean
    loss, for every choice that can be drawn; 0 for the others.

    Args:
      chosen: int32 `[I, P]`, indices of choices, I at least 2.
      losses: float32 `[I]`.
      probs: float32 `[P, N]`.
    """
    picked = jax.nn.one_hot(chosen, probs.shape[1])  # [I, P, N]
    advantage = (losses - losses.mean()) / (losses.shape[0] - 1)
    total = jnp.einsum("k,kpn->pn", advantage, picked)
    return jnp.where(probs > 0, total / jnp.where(probs > 0, probs, 1), 0)


def onto_simplex() -> optax.GradientTransformation:
    """Makes updates end on the simplex: each row of the parameters the closest distribution."""

    def update(updates, state, params):
        land = lambda u, p: jax.vmap(optax.projections.projection_simplex)(p + u) - p
        return jax.tree.map(land, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def draw_edits(key: jax.Array, length: int, candidates: jax.Array, *, num: int):
    """Places `[num]` and tokens `[num]` of single edits, uniform over P places and N candidates.

    No edit comes twice, unless there are fewer than `num`.
    """
    total = length * candidates.shape[0]
    index = jax.random.permutation(key, total)[jnp.arange(num) % total]
    return index // candidates.shape[0], candidates[index % candidates.shape[0]]


def frequent_tokens(
    documents: Iterable[Sequence[int]], num: int, *, excluded: Iterable[int] = ()
) -> np.ndarray:
    """The most frequent tokens of public documents, int32 `[<= num]`, the commonest first.

    Candidates for a prompt, after Diao et al., section 3.3, who keep the commonest n-grams of
    high pointwise mutual information; here single tokens.

    Args:
      documents: token ids of public texts; never of clients' rows.
      num: how many to keep.
      excluded: ids that no prompt may hold, such as bos, eos and padding.
    """
    ids = np.array([token for document in documents for token in document], np.int64)
    counts = np.bincount(ids)
    left_out = [i for i in excluded if i < len(counts)]
    counts[left_out] = 0
    order = np.argsort(-counts, kind="stable")[:num]
    return order[counts[order] > 0].astype(np.int32)


def finite_weight(weight: jax.Array, loss: jax.Array) -> jax.Array:
    """The weight, or NaN where the loss is not finite: the engine drops such a client.

    For uploads of tokens, in which a loss that is not finite would leave no trace.
    """
    return jnp.where(jnp.isfinite(loss), weight, jnp.nan)
