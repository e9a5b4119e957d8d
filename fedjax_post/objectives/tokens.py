"""Log-probabilities of tokens, and means over masks: what every objective is made of."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_post.model.views import score_tokens


def token_log_probs(
    logits: Float[Array, "B L V"], tokens: Int[Array, "B L"]
) -> Float[Array, "B M"]:
    """Returns log p(token | tokens before it) of tokens 1 .. L - 1, float32, nats; M is L - 1."""
    return score_tokens(logits[:, :-1], tokens[:, 1:]).log_probs


def masked_mean(values: Float[Array, "..."], mask: Array) -> Float[Array, ""]:
    """Returns the mean of `values` where `mask`; 0, with finite gradients, where it is empty."""
    weight = mask.astype(jnp.float32)
    total = jnp.where(weight > 0, values * weight, 0.0).sum()
    return total / jnp.maximum(weight.sum(), 1.0)


def masked_sum(values: Float[Array, "B L"], mask: Array) -> Float[Array, " B"]:
    """Returns each row's sum of `values` where `mask`."""
    return jnp.where(mask.astype(bool), values, 0.0).sum(axis=1)


def reference_of(model: Any) -> Any:
    """Returns the model as it was loaded: without what a federation folded into its base."""
    kept = {name: tree for name, tree in model.variables.items() if name != "residual"}
    return dataclasses.replace(model, variables=kept)
