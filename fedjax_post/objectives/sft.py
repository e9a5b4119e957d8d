"""Supervised fine-tuning: the mean negative log-likelihood of response tokens."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_post.model.views import LanguageModel
from fedjax_post.objectives.tokens import masked_mean

PyTree = Any


def sft_loss(
    params: PyTree, model: LanguageModel, batch: dict[str, Array], key: Array | None
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss over the response tokens of one batch, nats per token, and metrics.

    A mean over tokens, not over sequences: one-step federated averaging weighted
    by response tokens then equals central training.

    Args:
      params: what is trained, merged over the model.
      model: the frozen model.
      batch: "tokens" int32 `[B, L]`; "loss_mask" `[B, L]`, True where this token is to
        be predicted (token 0 never is); for packed rows also "segments" and
        "positions", int32 `[B, L]`, see `LanguageModel.logits`.
      key: for dropout; None is evaluation.

    Returns:
      The loss, and {"loss", "accuracy"}: share of response tokens that are the
      most likely one. Without response tokens both are 0 and gradients are 0.
    """
    tokens = batch["tokens"]
    scores = model.scores(
        params,
        tokens,
        positions=batch.get("positions"),
        segments=batch.get("segments"),
        key=key,
    )
    mask = batch["loss_mask"][:, 1:]
    loss = masked_mean(-scores.log_probs, mask)
    accuracy = masked_mean(scores.is_most_likely.astype(jnp.float32), mask)
    return loss, {"loss": loss, "accuracy": accuracy}
