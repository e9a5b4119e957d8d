"""Laws of low-rank adapters: zero at the start, exact merging, masks for smaller ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import (
    add_lora,
    linear_layers,
    lora_delta,
    mask_rank,
    merge_lora,
    rank_scale,
    with_rank,
)
from fedjax_post.core.wire import num_bytes
from fedjax_post.testing.models import tiny_model

TOKENS = jnp.array([[1, 2, 3, 4, 5]])


def random_lora(rank=3, alpha=6.0, **kwargs):
    model, params = add_lora(tiny_model(), jax.random.key(1), rank=rank, alpha=alpha, **kwargs)
    return model, jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )


def test_fresh_factors_change_nothing():
    base = tiny_model()
    model, params = add_lora(base, jax.random.key(0), rank=2, alpha=4)
    np.testing.assert_array_equal(model.logits(params, TOKENS), base.logits({}, TOKENS))
    a = params["lora"]["layers"]["mlp"]["down_proj"]["a"]
    assert a.shape == (2, 24, 2)
    assert 0.5 / np.sqrt(24) < np.abs(a).max() <= 1 / np.sqrt(24)


def test_adapter_equals_merged_weights():
    model, params = random_lora()
    merged = merge_lora(model, params)
    assert set(merged.variables) == {"params"}
    np.testing.assert_allclose(model.logits(params, TOKENS), merged.logits({}, TOKENS), atol=2e-5)


def test_delta_is_a_residual():
    model, params = random_lora()
    residual = {"residual": lora_delta(model, params)}
    expected = model.logits(params, TOKENS)
    np.testing.assert_allclose(model.logits(residual, TOKENS), expected, atol=2e-5)
    merged = merge_lora(model, residual)
    np.testing.assert_allclose(merged.logits({}, TOKENS), expected, atol=2e-5)


@pytest.mark.heavy
def test_rank_mask_equals_a_smaller_rank():
    model, params = random_lora(rank=4)
    small = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[..., :2] if path[-1].key == "a" else leaf[:, :2], params
    )
    expected = random_lora(rank=2)[0].logits(small, TOKENS)
    masked = jax.jit(lambda m, p, r: with_rank(m, 6.0, r).logits(p, TOKENS))(model, params, 2)
    np.testing.assert_allclose(masked, expected, atol=1e-5)
    cut = with_rank(model, 6.0, 2).logits(mask_rank(params, 2), TOKENS)
    np.testing.assert_allclose(cut, expected, atol=1e-5)


def test_rank_zero_is_the_base():
    model, params = random_lora()
    logits = with_rank(model, 6.0, jnp.int32(0)).logits(params, TOKENS)
    np.testing.assert_array_equal(logits, tiny_model().logits({}, TOKENS))


def test_scale_is_alpha_over_rank():
    np.testing.assert_allclose(rank_scale(8.0, 2, 4), [4, 4, 0, 0])


def test_targets_are_names_or_patterns():
    names = set(linear_layers(tiny_model()))
    assert len(names) == 7
    for targets, count in [
        ("all-linear", 7),
        (("q_proj", "v_proj"), 2),
        (".*attention.*", 4),
        (["layers.mlp.up_proj"], 1),
    ]:
        _, params = add_lora(tiny_model(), jax.random.key(0), rank=1, alpha=1, targets=targets)
        assert len(jax.tree.leaves(params)) == 2 * count


@pytest.mark.heavy
def test_layers_outside_of_the_range_have_no_factors():
    """Nothing of them is sent, so nothing is billed."""
    sizes = [
        num_bytes(add_lora(tiny_model(num_layers=4), jax.random.key(0), rank=1, alpha=1, **at)[1])
        for at in ({}, {"layers": (3, 4)})
    ]
    assert sizes[0] == 4 * sizes[1]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"rank": 0}, "`rank` must be at least 1, got 0"),
        ({"rank": 9}, r"rank=9 exceeds layer layers.attention.k_proj of 16 x 8"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"targets": ["query"]}, "'query' matches no linear layer; the layers are"),
        ({"targets": "("}, "not a regular expression"),
        ({"targets": []}, "`targets` is empty"),
        ({"targets": "(([a-z_.]+)+)+!"}, "may take forever to match; use at most 3"),
        ({"layers": (1, 3)}, "layers=1:3 is not a part of the model's 2 layers"),
        ({"layers": (1, 1)}, "layers=1:1 is not a part"),
        ({"layers": range(0, 2, 2)}, "one range without gaps"),
    ],
)
def test_bad_adapters_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        add_lora(tiny_model(), jax.random.key(0), **{"rank": 2, "alpha": 1.0, **kwargs})


def test_factors_without_scale_are_refused():
    _, params = random_lora()
    with pytest.raises(ValueError, match="no lora_scale"):
        tiny_model().logits(params, TOKENS)
