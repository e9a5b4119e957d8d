"""A toy federation over prompts of tokens, few enough to find the best prompt by enumeration.

A prompt's embeddings are averaged, with higher weights at later places. Added to those of a row's
question, they should be close to the target of the row's label. Clients differ in their labels.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access, opaque
from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.batches import ArrayClients

NUM_CLIENTS, VOCAB, LENGTH, WIDTH, DIMS = 6, 8, 3, 5, 4
BOS, EOS, BREAK = VOCAB, VOCAB + 1, VOCAB + 2  # ids after those of the words


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyPromptModel:
    """Frozen tables of words, which grant the tier `access`."""

    embeddings: jax.Array  # [VOCAB + 3, DIMS]
    targets: jax.Array  # [VOCAB + 3, DIMS]
    access: Access = dataclasses.field(default=Access.GRADIENTS, metadata={"static": True})

    def restrict(self, tier: Access) -> "ToyPromptModel":
        """Returns the same model, restricted to `tier`."""
        return dataclasses.replace(self, access=tier)

    def misses(self, params: PyTree, questions: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns squared distances `[B]` to the targets of the labels.

        Args:
          params: the prompt.
          questions: int32 `[B, Q]`, tokens.
          labels: int32 `[B]`, tokens.
        """
        prompt = params["prompt"]["tokens"]
        share = 1 + 0.4 * (jnp.arange(prompt.shape[0]) % LENGTH)
        prompt_mean = (share / share.sum()) @ self.embeddings[prompt]
        asked = self.embeddings[questions].mean(axis=1)
        found = prompt_mean[None] + 0.3 * asked
        misses = jnp.sum((found - self.targets[labels]) ** 2, axis=-1)
        return misses if Access.DIFFERENTIATE in self.access else opaque(misses)


def toy_model() -> ToyPromptModel:
    """Returns a fixed toy model."""
    tables = np.random.default_rng(5).normal(size=(2, VOCAB + 3, DIMS))
    tables[:, VOCAB:] = 0  # special tokens have no meaning
    return ToyPromptModel(*jnp.asarray(tables, jnp.float32))


def toy_params() -> PyTree:
    """Returns the prompt at which the search starts."""
    return {"prompt": {"tokens": jnp.arange(LENGTH, dtype=jnp.int32)}}


def toy_loss(params: PyTree, model: ToyPromptModel, batch: PyTree, key: jax.Array):
    """Returns half the mean of the misses over rows with a label, and metrics.

    Args:
      params: the prompt.
      model: the toy model.
      batch: "tokens" and "loss_mask" `[B, WIDTH]`, and "scale" `[B]`.
      key: not used.
    """
    del key
    tokens, mask = batch["tokens"], batch["loss_mask"].astype(bool)
    is_asked = mask.any(axis=1)
    misses = model.misses(params, tokens[:, 1 : WIDTH - 2], tokens[:, WIDTH - 2])
    count = is_asked.sum().astype(jnp.float32)
    weighed = jnp.where(is_asked, batch["scale"] * misses, 0)
    loss = 0.5 * weighed.sum() / jnp.maximum(count, 1)
    return loss, {"loss": loss, "queries": count, "tokens_sent": 3 * count}


def toy_arrays(num_clients: int = NUM_CLIENTS) -> list[PyTree]:
    """Returns the clients' rows, 4 to 8 each: bos, two words, a label and eos."""
    clients = []
    for k in range(num_clients):
        rng = np.random.default_rng((2, k))
        size = 4 + k % 5
        words = rng.integers(0, VOCAB, size=(size, 2))
        labels = rng.choice(3, size=(size, 1), p=rng.dirichlet([2.0] * 3))
        edge = np.ones((size, 1), np.int64)
        tokens = np.concatenate([BOS * edge, words, labels, EOS * edge], axis=1).astype(np.int32)
        mask = np.zeros((size, WIDTH), bool)
        mask[:, WIDTH - 2 :] = True
        clients.append({"tokens": tokens, "loss_mask": mask, "scale": np.ones(size, np.float32)})
    return clients


def toy_clients(num_clients: int = NUM_CLIENTS, *, batch_size: int = 4, local_steps: int = 3):
    """Returns the toy population.

    Args:
      num_clients: number of clients.
      batch_size: see `ArrayClients`.
      local_steps: see `ArrayClients`.
    """
    return ArrayClients(toy_arrays(num_clients), batch_size=batch_size, local_steps=local_steps)


def toy_mean_loss(params: PyTree, model: ToyPromptModel) -> float:
    """Returns the mean over the clients of their mean losses."""
    key = jax.random.key(0)
    return float(np.mean([toy_loss(params, model, arrays, key)[0] for arrays in toy_arrays()]))


def toy_best_loss() -> float:
    """Returns the least `toy_mean_loss` of any prompt of `LENGTH` words, by trying all of them."""
    model, key = toy_model(), jax.random.key(0)
    prompts = jnp.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), jnp.int32)
    one = lambda tokens, arrays: toy_loss({"prompt": {"tokens": tokens}}, model, arrays, key)[0]
    each = [jax.vmap(one, (0, None))(prompts, arrays) for arrays in toy_arrays()]
    return float(np.mean(each, axis=0).min())
