"""The memory law: clients share one base, and frozen weights get no gradient."""

import math

import jax
import jax.numpy as jnp
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.model.decoder import weight_shapes
from fedjax_post.model.quantize import quantize_model
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_config, tiny_model

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_layers": 2,
    "num_heads": 4,
    "head_dim": 32,
}


def compiled_gradient(num_clients, prepare=lambda model: model, **changes):
    model = prepare(tiny_model(**{**SHAPE, **changes}))
    model, params = add_lora(model, jax.random.key(0), rank=2, alpha=4)
    batch = {
        "tokens": jnp.zeros((num_clients, 1, 4), jnp.int32),
        "loss_mask": jnp.ones((num_clients, 1, 4), bool),
    }
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_clients), params)

    def step(params, model, batch):
        return jax.grad(lambda p: sft_loss(p, model, batch, None)[0])(params)

    mapped = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
    return mapped.lower(stacked, model, batch).compile()


@pytest.mark.heavy
def test_memory_does_not_grow_by_copies_of_the_base():
    base = 4 * sum(map(math.prod, weight_shapes(tiny_config(**SHAPE)).values()))
    one, eight = (compiled_gradient(n).memory_analysis().temp_size_in_bytes for n in (1, 8))
    assert base > 2**20
    assert eight - one < 0.7 * base  # seven merged copies would be 7 * base


@pytest.mark.heavy
def test_base_products_are_shared_and_frozen_weights_get_no_gradient():
    text = compiled_gradient(8).as_text()
    up = "f32[8,128,256]"  # one up_proj per client, or its gradient
    assert up not in text
    assert "f32[2,8,128,256]" not in text
    assert "f32[32,256]" in text  # 8 clients x 4 tokens, one product


@pytest.mark.heavy
def test_codes_are_read_back_one_layer_at_a_time():
    """Eight layers of 128 x 256 weights: at most two layers' worth is ever decoded."""
    plain, codes = (
        compiled_gradient(1, prepare, num_layers=8).memory_analysis().temp_size_in_bytes
        for prepare in (lambda model: model, lambda model: quantize_model(model, "nf4"))
    )
    layer = 4 * (3 * 128 * 256 + 2 * 128 * 128 + 2 * 128 * 64)
    assert codes - plain < 2 * layer
