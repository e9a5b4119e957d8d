"""Every family equals PyTorch, by golden numbers: see golden/make.py for their origin."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_post.adapters.lora import linear_layers
from fedjax_post.hub.families import FAMILIES, read_config
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.peft import load_adapter, save_adapter
from fedjax_post.hub.weights import expected_tensors
from fedjax_post.model.generate import generate
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import seeded_tensors

SEED, RANK, ALPHA = 7, 2, 3
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
FIRST = {json.loads(str(np.load(path)["config"]))["model_type"]: path for path in GOLDEN[::-1]}
# Every case's logits; gradients, adapters and generation of one case per family
OTHERS = [
    pytest.param(path, id=path.stem, marks=() if path in FIRST.values() else pytest.mark.slow)
    for path in GOLDEN
]


def model_folder(folder, path):
    """The case as `transformers` would have saved it, from seeded weights."""
    golden = np.load(path)
    raw = json.loads(str(golden["config"]))
    shapes = expected_tensors(FAMILIES[raw["model_type"]], read_config(raw))
    save_file(seeded_tensors(shapes, SEED), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    return golden


def adapter_folder(folder, model):
    """A seeded adapter on all linear layers, as `peft` would have saved it."""
    tensors = FAMILIES[model.config.model_type].tensors
    shapes = {}
    for path, (num_layers, size_in, size_out) in linear_layers(model).items():
        for i in range(num_layers):
            module = tensors[f"{path}.kernel"].name.format(i=i).removesuffix(".weight")
            shapes[f"base_model.model.{module}.lora_A.weight"] = (RANK, size_in)
            shapes[f"base_model.model.{module}.lora_B.weight"] = (size_out, RANK)
    save_file(seeded_tensors(shapes, SEED), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_every_family_has_three_cases():
    kinds = [json.loads(str(np.load(path)["config"]))["model_type"] for path in GOLDEN]
    assert {kind: kinds.count(kind) >= 3 for kind in FAMILIES} == dict.fromkeys(FAMILIES, True)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_logits_equal_pytorch(tmp_path, path):
    golden = model_folder(tmp_path, path)
    logits = load_model(tmp_path).logits({}, golden["ids"].astype(np.int32))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("path", OTHERS)
def test_lora_gradients_equal_peft(tmp_path, path):
    golden = model_folder(tmp_path, path)
    adapter_folder(tmp_path, load_model(tmp_path))
    model, params = load_adapter(tmp_path, load_model(tmp_path))
    ids = golden["ids"].astype(np.int32)
    np.testing.assert_allclose(model.logits(params, ids), golden["adapted"], atol=1e-4)
    batch = {"tokens": jnp.asarray(ids), "loss_mask": jnp.ones(ids.shape, bool)}
    grads = jax.jit(jax.grad(lambda p: sft_loss(p, model, batch, None)[0]))(params)
    save_adapter(tmp_path / "grads", model, grads)
    stored = load_file(tmp_path / "grads" / "adapter_model.safetensors")
    flat = np.concatenate([stored[name].ravel() for name in sorted(stored)])
    np.testing.assert_allclose(flat, golden["gradient"], atol=1e-4)


@pytest.mark.parametrize("path", OTHERS)
def test_greedy_equals_pytorch(tmp_path, path):
    golden = model_folder(tmp_path, path)
    ids = golden["greedy"].astype(np.int32)
    prompt = jnp.concatenate([jnp.zeros(2, jnp.int32), ids[:4]])[None]
    mask = jnp.arange(6)[None] >= 2
    new = generate(load_model(tmp_path), {}, prompt, mask, max_new_tokens=64, eos_id=99, pad_id=0)
    np.testing.assert_array_equal(new[0], ids[4:])


@pytest.mark.heavy
@pytest.mark.parametrize("path", OTHERS)
def test_packed_rows_equal_rows_of_their_own(tmp_path, path):
    """Logits and the loss's gradient, under two stacked clients with adapters of their own.

    Row 0 holds three sequences and padding, rows 1 to 3 one of them each, so that the
    gradient of the difference between their losses is nothing.
    """
    model_folder(tmp_path, path)
    adapter_folder(tmp_path, load_model(tmp_path))
    model, params = load_adapter(tmp_path, load_model(tmp_path))
    lengths = (4, 7, 5)  # longer than some windows
    ends = np.cumsum(lengths)
    ids = np.zeros((2, 4, 18), np.int32)
    ids[:, 0] = np.random.default_rng(0).integers(0, 40, (2, 18))
    segments, share = np.ones((4, 18), np.int32), np.zeros((4, 18), np.float32)
    segments[0] = np.repeat([1, 2, 3, 0], [*lengths, 2])
    share[0] = (segments[0] > 0) / sum(lengths)
    for row, (length, end) in enumerate(zip(lengths, ends, strict=True), start=1):
        ids[:, row, :length] = ids[:, 0, end - length : end]
        share[row, :length] = -1 / sum(lengths)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)

    def difference(params, model, ids):
        logits = model.logits(params, ids, segments=segments)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]
        return (share * chosen).sum(), logits

    mapped = jax.vmap(jax.grad(difference, has_aux=True), in_axes=(0, None, 0))
    gradient, logits = jax.jit(mapped)(stacked, model, ids)
    for row, (length, end) in enumerate(zip(lengths, ends, strict=True), start=1):
        packed, own = logits[:, 0, end - length : end], logits[:, row, :length]
        np.testing.assert_allclose(packed, own, atol=1e-5 * np.abs(own).max())
    assert all(np.abs(leaf).max() < 1e-5 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("path", OTHERS)
def test_saved_families_load_the_same(tmp_path, path):
    model_folder(tmp_path, path)
    save_model(tmp_path / "again", load_model(tmp_path))
    ours = load_file(tmp_path / "again" / "model.safetensors")
    theirs = load_file(tmp_path / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def test_files_without_their_prefix_load_the_same(tmp_path):
    """The published gpt2 has "wte.weight" and causal masks called "h.0.attn.bias"."""
    model_folder(tmp_path, FIRST["gpt2"])
    whole = load_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    save_file(bare, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path).variables, whole.variables)


def test_the_text_part_of_a_model_that_also_sees_loads_as_a_text_model(tmp_path):
    """As the published Gemma 3 of 4 billion and more: names and config one level down."""
    golden = model_folder(tmp_path, FIRST["gemma3_text"])
    raw = json.loads((tmp_path / "config.json").read_text())
    seen = {"model_type": "gemma3", "text_config": raw, "vision_config": {"hidden_act": "gelu"}}
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {f"language_model.{name}": value for name, value in tensors.items()}
    tensors["vision_tower.embeddings.patch_embedding.bias"] = np.zeros(8, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(seen))
    model = load_model(tmp_path)
    logits = model.logits({}, golden["ids"].astype(np.int32))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    save_model(tmp_path / "text", model)
    again = load_model(tmp_path / "text")
    assert again.config.model_type == "gemma3_text"
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)


def test_what_gemma_3_leaves_out_is_as_in_its_smallest():
    """The text part of the published 4B's config.json, which is all that it says."""
    said = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = read_config({"model_type": "gemma3", "text_config": said})
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262208, 8, 4)
    assert (config.head_dim, config.query_scale, config.tied_head) == (256, 1 / 16, True)
    assert (config.rope.factor, config.rope.theta, config.sliding_rope.theta) == (8.0, 1e6, 1e4)
    assert 5 not in config.sliding_layers
    assert len(config.sliding_layers) == 29
    with pytest.raises(ValueError, match="quantization_config"):
        read_config({"model_type": "gemma3", "text_config": said, "quantization_config": {"b": 4}})


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("llama_tied", {"use_alibi_attention": True}, "'use_alibi_attention': True"),
        ("llama_tied", {"num_local_experts": 8}, "num_local_experts"),
        ("llama_tied", {"sliding_window": 9}, "'sliding_window': 9"),
        ("llama_tied", {"pretraining_tp": 2}, "pretraining_tp=2"),
        ("gemma2_caps", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("gemma2_caps", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gpt2_tied", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
        ("phi3_plain", {"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
        ("qwen2_yarn", {"rope_parameters": {"rope_type": "yarn", "mscale": 0.7}}, "mscale"),
    ],
)
def test_variants_that_are_not_understood_are_refused(case, changes, words):
    raw = json.loads(str(np.load(Path(__file__).parent / "golden" / f"{case}.npz")["config"]))
    with pytest.raises(ValueError, match=words):
        read_config({**raw, **changes})


def test_old_spellings_read_the_same():
    """Configs from before transformers 5 keep rope_theta and rope_scaling at the top."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    base = {**shape, "vocab_size": 40, "num_attention_heads": 4, "max_position_embeddings": 64}
    linear = {"type": "linear", "factor": 8.0}
    for kind, old, new in [
        (
            "llama",
            {"rope_theta": 5e5, "rope_scaling": linear},
            {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
        ),
        (
            "gpt_neox",
            {"rotary_pct": 0.5, "rotary_emb_base": 100},
            {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        ),
        (
            "gemma3_text",
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": linear},
            {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
    ]:
        common = {**base, "model_type": kind, "sliding_window": 4 if "gemma" in kind else None}
        one, other = read_config({**common, **old}), read_config({**common, "rope_parameters": new})
        assert (one.rope, one.sliding_rope) == (other.rope, other.sliding_rope), kind
