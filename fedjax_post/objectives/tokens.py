"""Log-probabilities of tokens, and masked means and sums, for all objectives."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_post.model.views import score_tokens


def token_log_probs(
    logits: Float[Array, "B L V"], tokens: Int[Array, "B L"]
) -> Float[Array, "B M"]:
    """Returns log p(token | tokens before it) of tokens 1 .. L - 1, float32, nats; M is L - 1.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5]]]))
      >>> jnp.exp(token_log_probs(logits, jnp.array([[0, 1]]))).round(2).tolist()
      [[0.75]]
    """
    return score_tokens(logits[:, :-1], tokens[:, 1:]).log_probs


def masked_mean(values: Float[Array, "..."], mask: Array) -> Float[Array, ""]:
    """Returns the mean of `values` where `mask` is True; 0 with finite gradients if nowhere."""
    weight = mask.astype(jnp.float32)
    total = jnp.where(weight > 0, values * weight, 0.0).sum()
    return total / jnp.maximum(weight.sum(), 1.0)


def masked_sum(values: Float[Array, "B L"], mask: Array) -> Float[Array, " B"]:
    """Returns each row's sum of `values` where `mask` is True."""
    return jnp.where(mask.astype(bool), values, 0.0).sum(axis=1)


def reference_of(model: Any) -> Any:
    """Returns the model as it was loaded, without what a federation added to its base weights."""
    kept = {name: tree for name, tree in model.variables.items() if name != "residual"}
    return dataclasses.replace(model, variables=kept)
