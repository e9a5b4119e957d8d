"""Rows as tables, and a model that has learned some rows by heart."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.data.batches import TokenClients
from fedjax_post.data.partition import Partition
from fedjax_post.data.table import TokenTable, gather
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_model

END, PAD = 1, 0


def table_of(prompts, responses, **more):
    """A table of rows, each a prompt and a response that ends with END."""
    rows = [[*p, *(~t for t in (*r, END))] for p, r in zip(prompts, responses, strict=True)]
    length = np.array([len(row) for row in rows], np.int32)
    return TokenTable(
        (np.concatenate([np.array(row, np.int32) for row in rows]),),
        chunk=np.zeros(len(rows), np.int32),
        start=(np.cumsum(length) - length).astype(np.int64),
        length=length,
        prompt_length=np.array([len(p) for p in prompts], np.int32),
        max_length=int(length.max()),
        pad_id=PAD,
        **more,
    )


def clients_of(table, num_clients):
    """Clients with equally many consecutive rows."""
    offsets = np.arange(num_clients + 1) * (len(table.length) // num_clients)
    partition = Partition(offsets, np.arange(offsets[-1]))
    return TokenClients(table, partition, batch_size=2, local_steps=2)


@pytest.fixture(scope="session")
def learned():
    """A tiny model that was trained on the first 12 of 24 random rows until it knew them."""
    rng = np.random.default_rng(0)
    prompts = [(2, *rng.integers(3, 32, 3).tolist()) for _ in range(24)]
    table = table_of(prompts, rng.integers(3, 32, (24, 6)).tolist())
    model = tiny_model()
    tokens, mask = gather(table, np.arange(12))
    batch = {"tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(mask)}
    tx = optax.adam(0.02)

    @jax.jit
    def train(params):
        def step(_, carry):
            params, state = carry
            grads = jax.grad(lambda p: sft_loss(p, model, batch, None)[0])(params)
            updates, state = tx.update(grads, state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 120, step, (params, tx.init(params)))[0]

    params = train({"params": model.variables["params"]})
    return SimpleNamespace(model=model, params=params, table=table)
