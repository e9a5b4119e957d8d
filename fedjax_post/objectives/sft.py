"""Supervised fine-tuning: the mean negative log-likelihood of response tokens.

A batch is a dict of arrays `[B, L]`, L tokens a row:

| name | dtype | meaning |
| --- | --- | --- |
| tokens | int32 | token ids; padding may hold any id |
| loss_mask | bool | True where this token is predicted from those before it |
| segments | int32, optional | sequences packed in one row, numbered 1, 2, ...; 0 is padding |
| positions | int32, optional | of tokens; default 0, 1, ... from the start of each sequence |

The first token of a row or of a segment has nothing before it and is never predicted, nor is
padding, whatever the mask says. Packed sequences do not see each other.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_post.model.views import LanguageModel

PyTree = Any


def sft_loss(
    params: PyTree, model: LanguageModel, batch: dict[str, Array], key: Array | None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss over the response tokens of one batch, nats per token, and metrics.

    It is a mean over tokens, not over sequences: with weights proportional to response tokens,
    federated averaging of one step then equals central training.

    Args:
      params: the trained parameters, merged over the model.
      model: the frozen model.
      batch: "tokens" and "loss_mask" `[B, L]`, for packed rows also "segments"; see above.
      key: for dropout; None for evaluation.

    Returns:
      The loss, and {"loss", "accuracy"}; the accuracy is the share of response tokens that are
      the most likely token. Without response tokens both are 0 and gradients are 0.

    Example:
      >>> from fedjax_post.testing.models import tiny_model
      >>> tokens = jnp.array([[1, 2, 3, 4], [1, 5, 6, 7]])
      >>> batch = {"tokens": tokens, "loss_mask": jnp.arange(4)[None] >= jnp.array([[2], [3]])}
      >>> loss, metrics = sft_loss({}, tiny_model(), batch, None)
      >>> loss.shape, sorted(metrics)
      ((), ['accuracy', 'loss'])
    """
    where = {"positions": batch.get("positions"), "segments": batch.get("segments")}
    total = model.total_loss(params, batch["tokens"], _loss_mask(batch), key=key, **where)
    count = jnp.maximum(total.num_tokens, 1)
    loss = total.nats / count
    return loss, {"loss": loss, "accuracy": total.num_correct / count}


def num_tokens(batch: dict[str, Array]) -> Float[Array, ""]:
    """Returns the number of response tokens over which `sft_loss` is the mean."""
    return _loss_mask(batch)[:, 1:].sum(dtype=jnp.float32)


def _loss_mask(batch: dict[str, Array]) -> Bool[Array, "B L"]:
    mask, segments = batch["loss_mask"].astype(bool), batch.get("segments")
    if segments is None:
        return mask
    is_next = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return mask & jnp.pad(is_next, ((0, 0), (1, 0)))
