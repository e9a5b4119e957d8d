"""A tiny language model with the parameters of a toy, for what a quadratic loss does not test.

The loss is `sft_loss` of an adapter in which every number is a fixed linear function of the toy's
parameters, so that an algorithm that was built for the toy can be run on it unchanged.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_post.adapters.lora import add_lora
from fedjax_post.core.access import Access
from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.batches import ArrayClients
from fedjax_post.model.views import LanguageModel
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_model

VOCAB, LENGTH, NUM_CLIENTS = 8, 5, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyLanguage:
    """A language model, and the values of its adapter when the toy's parameters are zero."""

    model: LanguageModel
    start: PyTree

    @property
    def access(self) -> Access:
        """The tier that the model grants."""
        return self.model.access

    def restrict(self, tier: Access) -> "ToyLanguage":
        """Returns the same model, restricted to `tier`, which is WEIGHTS or GRADIENTS."""
        view: Any = self.model.restrict(tier)
        return dataclasses.replace(self, model=view)

    def loss(self, params: PyTree, batch: PyTree, key: jax.Array):
        """Returns `sft_loss` of the adapter that corresponds to the toy's parameters.

        Args:
          params: the toy's parameters.
          batch: "tokens" and "loss_mask" `[B, LENGTH]`.
          key: for dropout.
        """
        numbers, (start, unravel) = ravel_pytree(params)[0], ravel_pytree(self.start)
        rng = np.random.default_rng(5)
        directions = rng.normal(size=(numbers.size, start.size)).astype(np.float32) / 4
        return sft_loss(unravel(start + numbers @ directions), self.model, batch, key)


def adapted_model() -> tuple[LanguageModel, PyTree]:
    """Returns an adapted model of one layer of width 8, and an adapter that changes its outputs."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "num_kv_heads": 2}
    tiny = tiny_model(num_layers=1, vocab_size=VOCAB, max_positions=8, **sizes)
    model, params = add_lora(tiny, jax.random.key(1), rank=2, alpha=4)
    return model, jax.tree.map(lambda leaf: leaf + 0.1, params)


def language_clients() -> ArrayClients:
    """Returns two clients with rows of tokens, of which the last two are learned."""
    clients = []
    for k in range(NUM_CLIENTS):
        tokens = np.random.default_rng((6, k)).integers(0, VOCAB, (4, LENGTH), np.int32)
        mask = np.broadcast_to(np.arange(LENGTH) >= LENGTH - 2, tokens.shape)
        clients.append({"tokens": tokens, "loss_mask": mask.copy()})
    return ArrayClients(clients, batch_size=2, local_steps=2)
