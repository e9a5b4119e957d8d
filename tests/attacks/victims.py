"""A tiny model, its clients' rows, and what a server sees of one visit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_post.adapters.lora import add_lora
from fedjax_post.attacks import Public, Sent
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_model

LENGTH, BOS, EOS, PAD = 8, 0, 1, 2
SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_layers": 2,
    "head_dim": 12,
    "bos_id": BOS,
}
WORDS = [f"w{token}" for token in range(SIZES["vocab_size"])]


def decode(row):
    return " ".join(WORDS[token] for token in row if token > PAD)


def rows_of(seed, count):
    """Rows of bos, different tokens and eos."""
    rng = np.random.default_rng(seed)
    inner = [rng.choice(np.arange(3, 64), LENGTH - 2, replace=False) for _ in range(count)]
    return np.array([[BOS, *row, EOS] for row in inner], np.int32)


def lora(rank, *, warm=0.0):
    """A model and an adapter; `warm` is the size of B, which is 0 before the first round."""
    model, params = add_lora(tiny_model(**SIZES), jax.random.key(1), rank=rank, alpha=2.0 * rank)

    def grow(path, leaf):
        if path[-1].key != "b" or not warm:
            return leaf
        return warm * jax.random.normal(jax.random.key(leaf.shape[-1]), leaf.shape)

    return model, jax.tree_util.tree_map_with_path(grow, params)


def full():
    """A model without weights of its own, and all weights as parameters."""
    model = tiny_model(**SIZES)
    return model, {"params": model.variables["params"]}


@partial(jax.jit, static_argnames="learning_rate")
def _step(model, params, tokens, learning_rate):
    batch = {"tokens": tokens, "loss_mask": jnp.ones(tokens.shape, bool)}
    grads, _ = jax.grad(sft_loss, has_aux=True)(params, model, batch, None)
    return optax.apply_updates(params, jax.tree.map(lambda g: -learning_rate * g, grads))


def visit(model, params, batches, *, learning_rate=0.1):
    """What a server sees of a client that takes a step of SGD on each batch."""
    end = params
    for tokens in batches:
        end = _step(model, end, tokens, learning_rate)
    change = jax.tree.map(jnp.subtract, end, params)
    sent = Sent(0, (0,), params, change, float(len(batches)))
    return public(model, len(batches[0]), learning_rate), sent


def public(model, batch_size, learning_rate):
    return Public(model, decode, "sgd", learning_rate, batch_size, LENGTH, EOS, PAD)


def noisy(sent, share):
    """The change with Gaussian noise, of a deviation that is a share of each leaf's own."""

    def add(leaf, key):
        return leaf + share * jnp.std(leaf) * jax.random.normal(key, leaf.shape)

    leaves, structure = jax.tree.flatten(sent.change)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    return sent._replace(change=structure.unflatten(map(add, leaves, keys)))
