"""A toy federation whose model has a host that trains it on uploaded rows.

The frozen tables are those of `toy_prompt`. The host's training moves what the model finds towards
its targets by the share of the clients that have uploaded; with all of them it is exact.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access, AccessError
from fedjax_post.core.algorithm import PyTree
from fedjax_post.testing import toy_prompt
from fedjax_post.testing.toy_prompt import NUM_CLIENTS as NUM_CLIENTS
from fedjax_post.testing.toy_prompt import ToyPromptModel
from fedjax_post.testing.toy_prompt import toy_arrays as toy_arrays
from fedjax_post.testing.toy_prompt import toy_clients as toy_clients
from fedjax_post.testing.toy_prompt import toy_params as toy_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyHostedModel:
    """A toy model with its host."""

    model: ToyPromptModel
    share: jax.Array  # (), float32: of the clients on whose rows it is trained
    access: Access = dataclasses.field(
        default=Access.TEXT | Access.FINETUNE, metadata={"static": True}
    )

    def restrict(self, tier: Access) -> "ToyHostedModel":
        """Returns the same model, restricted to `tier`."""
        return dataclasses.replace(self, access=tier)

    def upload(self, params: PyTree, tokens: Any, question_mask: Any, answer_mask: Any) -> None:
        """Takes the rows, which have no effect of their own; see `View.upload`."""
        del params, tokens, question_mask, answer_mask
        if Access.FINETUNE not in self.access:
            raise AccessError("upload needs FINETUNE")

    def tuned(self, uploaded: jax.Array, **settings: Any) -> "ToyHostedModel":
        """Returns the model that is trained on the uploaded rows; see `View.tuned`."""
        del settings
        share = jnp.mean(uploaded > 0, dtype=jnp.float32)
        return dataclasses.replace(self, share=share)


def toy_model() -> ToyHostedModel:
    """Returns a fixed toy model, not trained yet."""
    return ToyHostedModel(toy_prompt.toy_model(), jnp.float32(0))


def toy_loss(params: PyTree, model: ToyHostedModel, batch: PyTree, key: jax.Array):
    """Returns the loss of `toy_prompt.toy_loss`, less what the host has trained."""
    loss, metrics = toy_prompt.toy_loss(params, model.model, batch, key)
    return (1 - model.share) * loss, metrics


def toy_mean_loss(params: PyTree, model: ToyHostedModel) -> float:
    """Returns the mean over the clients of their mean losses."""
    key = jax.random.key(0)
    return float(np.mean([toy_loss(params, model, arrays, key)[0] for arrays in toy_arrays()]))


def toy_best_loss() -> float:
    """Returns the loss of a model that is trained on the rows of all clients: 0."""
    return 0.0
