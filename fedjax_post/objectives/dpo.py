"""DPO: a policy learns from pairs of responses, of which one is preferred.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model", NeurIPS 2023, arXiv:2305.18290, equation 7. Used on every client of a federation, it is
the federated DPO of OpenFedLLM (Ye et al., KDD 2024, arXiv:2402.06954).

A batch is `{"tokens", "loss_mask"}` as in `objectives/sft.py`, with leaves `[B, 2, L]`: the
preferred and the rejected response to a question. A pair without response tokens is padding.

The reference is the model as it was loaded: without an adapter, and without what a federation
added to its base weights. It needs no second copy of the weights. Its forward pass, which has no
gradient, makes a step about one third more expensive than fine-tuning on the same number of rows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_post.objectives.tokens import masked_mean, masked_sum, reference_of

PyTree = Any


def dpo_loss(*, beta: float = 0.1) -> Callable:
    """Returns the DPO loss, which makes preferred responses more likely relative to a reference.

    It is the mean over pairs of -log sigmoid(beta (margin of the policy - margin of the
    reference)). A margin is the log-probability of the preferred response minus that of the
    rejected one, each summed over its tokens.

    Args:
      beta: strength of the pull towards the reference, positive; the paper uses 0.1 to 0.5.

    Returns:
      `(params, model, batch, key) -> (loss, metrics)` over pairs. Metrics: "loss"; "accuracy",
      the share of pairs whose implicit reward is higher for the preferred response (ties count as
      wrong, and at the start all are ties); "margin", the mean difference of these rewards.

    Raises:
      ValueError: if `beta` is not positive.

    Example:
      >>> from fedjax_post.testing.models import tiny_model
      >>> pair = jnp.array([[[1, 2, 3, 4], [1, 2, 5, 6]]])
      >>> batch = {"tokens": pair, "loss_mask": jnp.broadcast_to(jnp.arange(4) >= 2, pair.shape)}
      >>> loss, metrics = dpo_loss(beta=0.1)({}, tiny_model(), batch, None)
      >>> round(float(loss), 3)  # log 2: the policy still is the reference
      0.693
    """
    if not beta > 0:
        raise ValueError(f"beta={beta:g} must be positive; 0.1 is usual")

    def loss_fn(params, model, batch, key):
        pairs = batch["tokens"].shape
        tokens = batch["tokens"].reshape(-1, pairs[-1])
        mask = batch["loss_mask"].astype(bool).reshape(tokens.shape)
        is_pair = _is_pair(batch)
        policy = response_log_probs(model, params, tokens, mask, key=key)
        reference = response_log_probs(reference_of(model), {}, tokens, mask)
        rewards = beta * (policy - jax.lax.stop_gradient(reference)).reshape(pairs[:2])
        margins = rewards[:, 0] - rewards[:, 1]
        loss = masked_mean(-jax.nn.log_sigmoid(margins), is_pair)
        return loss, {
            "loss": loss,
            "accuracy": masked_mean((margins > 0).astype(jnp.float32), is_pair),
            "margin": masked_mean(margins, is_pair),
        }

    return loss_fn


def response_log_probs(
    model: Any, params: PyTree, tokens: Array, loss_mask: Array, *, key: Array | None = None
) -> Float[Array, " B"]:
    """Returns the log-probability of each row's response tokens, summed, nats.

    Args:
      model: the frozen model.
      params: merged over the model.
      tokens: int32 `[B, L]`.
      loss_mask: bool `[B, L]`; its first column is ignored.
      key: for dropout; None for evaluation.
    """
    log_probs = model.scores(params, tokens, key=key).log_probs
    return masked_sum(log_probs, loss_mask[:, 1:])


def num_pairs(batch: dict[str, Array]) -> Float[Array, ""]:
    """Returns the number of pairs over which `dpo_loss` is the mean."""
    return _is_pair(batch).sum(dtype=jnp.float32)


def _is_pair(batch: dict[str, Array]) -> Bool[Array, " B"]:
    return batch["loss_mask"].astype(bool).any(axis=2).all(axis=1)
