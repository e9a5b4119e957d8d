"""HetLoRA prunes by the sum over adapted matrices of |A tail| |B tail|."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post import algorithms
from fedjax_post.adapters import factors
from fedjax_post.core.algorithm import no_context
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.testing import toy_lora

RANK, KEPT = 4, 2


def adapter(norms_a, norms_b):
    """Factors whose tails have these norms in the first two layers, and are zero in others."""
    pair = toy_lora.toy_params(RANK)["lora"]["layers"]["mix"]
    a, b = np.array(pair["a"]), np.ones_like(pair["b"])
    a[..., KEPT:], b[:, KEPT:] = 0, 0
    a[:2, 0, KEPT], b[:2, KEPT, 0] = norms_a, norms_b
    return {"lora": {"layers": {"mix": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}}}


# sums of products 0.2 and 0.5; products of the norms over both layers 1.01 and 0.5
LESS, MORE = adapter((1.0, 0.1), (0.1, 1.0)), adapter((0.5, 0.5), (0.5, 0.5))


@pytest.mark.parametrize(("start", "end", "kept"), [(MORE, LESS, KEPT), (LESS, MORE, RANK)])
def test_a_visit_prunes_where_the_sum_of_products_fell(start, end, kept):
    way = optax.tree.sub(start, end)
    loss_fn = lambda params, model, batch, key: (optax.tree.vdot(way, params), {})
    algorithm = algorithms.het_lora(loss_fn, optax.sgd(1.0), prune_to=0.5)
    data = toy_lora.toy_clients().visit(0, data_rng(0, 0, 0))
    data = data._replace(step_mask=np.arange(len(data.step_mask)) < 1)
    model, replica = toy_lora.toy_model(RANK), factors.split(start)
    limit = algorithm.client.init(model, replica, jax.random.key(0))
    upload, limit, _ = algorithm.client.update(model, replica, limit, data, no_context())
    assert int(limit) == kept
    live = (np.asarray(upload.value.a["layers"]["mix"]) != 0).any((0, 1))
    assert live.sum() == KEPT + (kept == RANK)
