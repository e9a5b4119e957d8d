"""Laws of PEFT folders: writing and reading changes no logit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_post.adapters.lora import add_lora, with_rank
from fedjax_post.core.patterns import is_bounded
from fedjax_post.hub.adapter_config import match_pattern
from fedjax_post.hub.load import save_model
from fedjax_post.hub.peft import load_adapter, save_adapter
from fedjax_post.testing.models import tiny_model

TOKENS = jnp.array([[1, 2, 3, 4]])


def random_lora(**kwargs):
    model, params = add_lora(tiny_model(), jax.random.key(1), rank=3, alpha=6, **kwargs)
    return model, jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_round_trip_changes_no_bit(tmp_path, targets):
    model, params = random_lora(targets=targets, dropout=0.1)
    save_adapter(tmp_path, model, params, base_name="org/base")
    again, factors = load_adapter(tmp_path, tiny_model())
    jax.tree.map(np.testing.assert_array_equal, factors, params)
    np.testing.assert_array_equal(again.logits(factors, TOKENS), model.logits(params, TOKENS))
    assert again.lora_dropout == 0.1
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 6)
    assert config["base_model_name_or_path"] == "org/base"


@pytest.mark.heavy
def test_a_range_of_layers_is_written_and_read(tmp_path):
    """Only its keys are in the file; a folder of all layers is no range."""
    base = tiny_model(num_layers=4)
    model, params = add_lora(base, jax.random.key(1), rank=3, alpha=6, layers=(1, 3))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    save_adapter(tmp_path, model, params)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.split(".layers.")[1][0] for name in names} == {"1", "2"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1, 2]
    again, factors = load_adapter(tmp_path, base)
    assert again.lora_layers == (1, 3)
    jax.tree.map(np.testing.assert_array_equal, factors, params)
    np.testing.assert_array_equal(again.logits(factors, TOKENS), model.logits(params, TOKENS))
    save_adapter(tmp_path / "whole", *random_lora())
    config = json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] is None
    assert load_adapter(tmp_path / "whole", tiny_model())[0].lora_layers is None


def test_components_of_scale_zero_are_left_out(tmp_path):
    model, params = random_lora()
    model = with_rank(model, 5.0, 2)
    save_adapter(tmp_path, model, params)
    again, factors = load_adapter(tmp_path, tiny_model())
    assert factors["lora"]["layers"]["attention"]["q_proj"]["a"].shape == (2, 16, 2)
    np.testing.assert_allclose(
        again.logits(factors, TOKENS), model.logits(params, TOKENS), atol=1e-5
    )


def test_rank_and_alpha_patterns_and_rslora_are_read(tmp_path):
    """One layer of rank 1 and alpha 5 among layers of rank 3 and alpha 6."""
    model, params = random_lora(targets=("q_proj",))
    save_adapter(tmp_path, model, params)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors[name.format("A")] = tensors[name.format("A")][:1]
    tensors[name.format("B")] = np.ascontiguousarray(tensors[name.format("B")][:, :1])
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    pattern = "layers.1.self_attn.q_proj"
    edit_config(tmp_path, rank_pattern={pattern: 1}, alpha_pattern={pattern: 5.0})
    again, _ = load_adapter(tmp_path, tiny_model())
    scale = again.variables["lora_scale"]["layers"]["attention"]["q_proj"]["scale"]
    np.testing.assert_allclose(scale, [[2, 2, 2], [5, 0, 0]])
    edit_config(tmp_path, use_rslora=True)
    again, _ = load_adapter(tmp_path, tiny_model())
    scale = again.variables["lora_scale"]["layers"]["attention"]["q_proj"]["scale"]
    np.testing.assert_allclose(scale, [[6 / 3**0.5] * 3, [5, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "'IA3' is not LORA"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"alora_invocation_tokens": [7, 8]}, r"alora_invocation_tokens=\[7, 8\]"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"a_switch_of_tomorrow": 0.5}, "a_switch_of_tomorrow=0.5"),
        ({"r": 4}, "factors of rank 3, but adapter_config.json has 4"),
        ({"r": "3"}, "r='3' is not supported"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "alpha_pattern="),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern="),
    ],
)
def test_variants_are_refused(tmp_path, changes, words):
    save_adapter(tmp_path, *random_lora())
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"^{tmp_path}.*{words}"):
        load_adapter(tmp_path, tiny_model())


# What `peft` 0.21 writes of LoraConfig() that is not empty; and what else may be set
PLAIN = {
    **{"peft_type": "LORA", "r": 3, "lora_alpha": 6, "lora_dropout": 0.0, "bias": "none"},
    **{"init_lora_weights": True, "megatron_core": "megatron.core", "qalora_group_size": 16},
    **{"inference_mode": True, "peft_version": "0.21.2", "task_type": "CAUSAL_LM"},
    **{"target_modules": ["q_proj"], "runtime_config": {"ephemeral_gpu_offload": False}},
}
HARMLESS = {
    **{"fan_in_fan_out": True, "layers_to_transform": [0, 1], "layers_pattern": "layers"},
    **{"exclude_modules": ["x"], "revision": "main", "use_rslora": True, "eva_config": {"rho": 2}},
    **{"auto_mapping": {"a": "b"}, "loftq_config": {"loftq_bits": 4}, "target_parameters": ["x"]},
    **{"base_model_name_or_path": "org/base", "rank_pattern": {"x": 2}, "alpha_pattern": {"x": 2}},
}


def test_what_peft_writes_of_plain_lora_is_read(tmp_path):
    save_adapter(tmp_path, *random_lora())
    for changes in (PLAIN, {**PLAIN, **HARMLESS}, {"init_lora_weights": "gaussian"}):
        edit_config(tmp_path, **changes)
        load_adapter(tmp_path, tiny_model())


@pytest.mark.oracle
def test_every_field_of_peft_s_configuration_is_known_or_refused(tmp_path):
    """A default is read; any other value too where it is known to be harmless, else it is named."""
    import dataclasses

    import peft

    save_adapter(tmp_path, *random_lora())
    defaults = json.loads(json.dumps(peft.LoraConfig(r=3, lora_alpha=6).to_dict(), default=str))
    edit_config(tmp_path, **{**defaults, "runtime_config": {}})
    load_adapter(tmp_path, tiny_model())
    names = [field.name for field in dataclasses.fields(peft.LoraConfig)]
    kept = {*PLAIN, *HARMLESS}
    assert kept <= set(names)
    for name in set(names) - kept:
        edit_config(tmp_path, **{name: {"x": 1}})
        with pytest.raises(ValueError, match=f"{name}="):
            load_adapter(tmp_path, tiny_model())
        edit_config(tmp_path, **{name: None})


@pytest.mark.oracle
@pytest.mark.parametrize(
    "kind",
    ["gaussian", "orthogonal", "mica", "pissa", "pissa_niter_2", "olora", "parameters", "regex"],
)
def test_adapters_of_peft_s_initialisations_have_its_logits_or_are_refused(tmp_path, kind):
    import peft
    import torch
    import transformers

    save_model(tmp_path / "base", tiny_model())
    base = lambda: transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    torch.manual_seed(0)
    given = {"init_lora_weights": kind, "target_modules": "all-linear"}
    if kind == "parameters":
        given = {"target_parameters": ["q_proj.weight"], "target_modules": []}
    if kind == "regex":
        given = {"target_modules": r".*\.(q|down)_proj", "rank_pattern": {r".*\.0\..*q_proj": 2}}
    adapted = peft.get_peft_model(base(), peft.LoraConfig(r=4, task_type="CAUSAL_LM", **given))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value += 0.2 * torch.randn(value.shape)
    adapted.save_pretrained(tmp_path / "adapter")
    if kind.startswith(("pissa", "olora")):
        with pytest.raises(ValueError, match=f"init_lora_weights='{kind}' is not supported"):
            load_adapter(tmp_path / "adapter", tiny_model())
        return
    model, params = load_adapter(tmp_path / "adapter", tiny_model())
    with torch.no_grad():
        again = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
        expected = again(torch.tensor(np.asarray(TOKENS))).logits.numpy()
    np.testing.assert_allclose(model.logits(params, TOKENS), expected, atol=1e-4)
    assert np.abs(expected - np.asarray(tiny_model().logits({}, TOKENS))).max() > 1e-3


def test_a_pickle_is_named_with_the_way_around(tmp_path):
    save_adapter(tmp_path, *random_lora())
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model.bin is a pickle.*save_pretrained"):
        load_adapter(tmp_path, tiny_model())


def test_factors_that_are_not_finite_are_named(tmp_path):
    save_adapter(tmp_path, *random_lora())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = min(tensors)
    tensors[name][0, 0] = np.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"{name} holds numbers that are NaN"):
        load_adapter(tmp_path, tiny_model())


def test_patterns_that_may_never_end_are_told_by_their_form():
    """Each that is let through is tried on a name of 120 characters; none takes long."""
    import time

    fine = ["q_proj", r"layers\.(?:0|1)\..*q_proj", "^model.*$", r"[qk]_proj", ".*.*.*x", "a{1,9}b"]
    endless = ["(a+)+b", "(.*)*x", "(a|a)?b", "(?=a)b", ".*.*.*.*", "(" * 40, "[", "a" * 600]
    assert [is_bounded(pattern) for pattern in fine + endless] == [True] * 6 + [False] * 8
    start = time.process_time()
    for pattern in fine:
        match_pattern({pattern: 1}, "a." * 60 + "y", 0)
    assert time.process_time() - start < 1


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    save_adapter(tmp_path, *random_lora())
    with pytest.raises(ValueError, match=r"do not fit a layer of 40 x 16"):
        load_adapter(tmp_path, tiny_model(intermediate_size=40))
    with pytest.raises(ValueError, match="without a place in the model: base_model"):
        load_adapter(tmp_path, tiny_model(num_layers=1))


def test_what_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds an adapter, got the collections"):
        save_adapter(tmp_path, tiny_model(), {"params": {}})
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        load_adapter(tmp_path, tiny_model())
