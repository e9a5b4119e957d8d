"""Folders of adapters as vLLM reads them, by its published rules (vllm/lora/peft_helper.py).

It knows one rank and one alpha for all layers and no patterns, takes the rank of a layer from its
matrices, and refuses what it cannot apply.
"""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedjax_post.adapters.lora import add_lora, with_scale
from fedjax_post.hub.peft import save_adapter
from fedjax_post.testing.models import tiny_model

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of `--max-lora-rank`
PACKED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted(rank=4, alpha=8.0):
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=rank, alpha=alpha)
    noise = lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return model, jax.tree.map(noise, params)


def read_as_vllm(folder):
    """The module -> product of its factors and the scale, as vLLM computes it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert not config.get("modules_to_save")
    assert not config.get("use_dora")
    assert config["bias"] == "none"
    assert config["peft_type"] == "LORA"
    found: dict = {}
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, matrix in tensors.items():
        *module, factor, last = name.removeprefix("base_model.model.").split(".")
        assert name.startswith("base_model.model.model.layers.")
        assert (factor in ("lora_A", "lora_B"), last) == (True, "weight")
        assert module[-1] in PACKED
        found.setdefault(".".join(module), {})[factor] = matrix
    ranks = {pair["lora_A"].shape[0] for pair in found.values()}
    assert max(ranks) <= max(MAX_RANKS)
    return {name: scale * pair["lora_B"] @ pair["lora_A"] for name, pair in found.items()}


@pytest.mark.parametrize("unequal", [False, True])
def test_every_layer_has_the_product_of_the_run(tmp_path, unequal):
    model, params = adapted()
    scales = model.variables["lora_scale"]
    if unequal:  # the last layer uses half of its components
        scales = jax.tree.map(lambda scale: scale.at[-1, 2:].set(0.0), scales)
        model = with_scale(model, scales, dropout=0.0)
    save_adapter(tmp_path, model, params, base_name="tiny")
    found = read_as_vllm(tmp_path)
    assert len(found) == 14
    for name, product in found.items():
        _, _, layer, block, linear = name.split(".")
        block = block.replace("self_attn", "attention")
        own, scale = (tree["layers"][block][linear] for tree in (params["lora"], scales))
        a, b, c = (np.asarray(x[int(layer)]) for x in (own["a"], own["b"], scale["scale"]))
        np.testing.assert_allclose(product, (a * c @ b).T, rtol=1e-5, atol=1e-6)
