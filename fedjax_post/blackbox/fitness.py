"""What a prompt is worth to a client that searches for one: equation 7 of FedBPT.

Sun et al., ICML 2024, arXiv:2310.01467. A prompt that gives the same answers whatever the
question is worth 1, since its loss does not change when the questions do.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.algorithm import ClientData, Context, Metrics, PyTree, mean_of, sums_of
from fedjax_post.core.local import over_steps
from fedjax_post.core.world import LossFn


def fitness_of(
    loss_fn: LossFn,
    params: PyTree,
    model: Any,
    data: ClientData,
    ctx: Context,
    *,
    mask_rate: float,
    vocab_size: int,
) -> tuple[jax.Array, Metrics]:
    """Returns F over all rows of a visit, float32 (), and the metrics there.

    F is the mean loss over the mean loss of the same rows with some of their tokens replaced;
    without `mask_rate` it is the mean loss.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      params: the prompt.
      model: the frozen model.
      data: `K_max` batches and the mask of the steps to take.
      ctx: the visit's context; its key also decides which tokens are replaced.
      mask_rate: share of a question's tokens that are replaced, in [0, 1).
      vocab_size: token ids to replace them from.
    """

    def losses(batch, key):
        loss, metrics = loss_fn(params, model, batch, key)
        if not mask_rate:
            return loss, jnp.ones_like(loss), metrics, sums_of(metrics)
        blurred = replace_tokens(batch, key, rate=mask_rate, vocab_size=vocab_size)
        other, more = loss_fn(params, model, blurred, key)
        return loss, other, metrics, optax.tree.add(sums_of(metrics), sums_of(more))

    _, total = over_steps(lambda _, *args: ((), losses(*args)), (), data, ctx)
    loss, other, metrics, asked = total
    num_steps = jnp.maximum(jnp.asarray(data.step_mask).sum(dtype=jnp.float32), 1)
    tiny = jnp.finfo(other.dtype).tiny
    return loss / jnp.maximum(other, tiny), mean_of(metrics, num_steps) | asked


def replace_tokens(batch: PyTree, key: jax.Array, *, rate: float, vocab_size: int) -> PyTree:
    """Returns the batch with some tokens of its questions drawn anew.

    The tokens of responses and the first token of each row stay.

    Args:
      batch: "tokens" int32 and "loss_mask" `[B, L]`, the latter true on responses.
      key: decides which tokens are replaced, and by what.
      rate: share of the tokens that are replaced, in [0, 1).
      vocab_size: new tokens are uniform over this many ids.
    """
    tokens = batch["tokens"]
    which, what = jax.random.split(key)
    hit = jax.random.bernoulli(which, rate, tokens.shape) & ~batch["loss_mask"].astype(bool)
    hit = hit & (jnp.arange(tokens.shape[1]) > 0)[None]
    drawn = jax.random.randint(what, tokens.shape, 0, vocab_size, tokens.dtype)
    return {**batch, "tokens": jnp.where(hit, drawn, tokens)}
