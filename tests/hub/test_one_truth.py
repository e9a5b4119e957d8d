"""Laws of model folders that state a thing twice: read as transformers does, or refused."""

import json
import os
import shutil
import stat

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_post.hub.families import FAMILIES, read_config
from fedjax_post.hub.fields import KINDS, Reader
from fedjax_post.hub.load import load_config, load_model, save_model
from fedjax_post.hub.resolve import family_name, is_derived
from fedjax_post.hub.tensors import INDEX, SINGLE, is_finite
from fedjax_post.hub.weights import expected_tensors
from fedjax_post.testing.models import tiny_model

TOKENS = jnp.array([[1, 2, 3, 4]])
LLAMA = {
    **{"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
}
MISTRAL = {**LLAMA, "model_type": "mistral"}
NEOX = {**LLAMA, "model_type": "gpt_neox", "hidden_size": 64}


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", tiny_model())
    return tmp_path / "model"


def shard(folder):
    """Splits the one file of a folder into two and an index."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    weight_map = {}
    for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        name = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in names}, folder / name)
        weight_map |= dict.fromkeys(names, name)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def edit(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def test_what_is_saved_into_a_sharded_folder_is_what_is_read(folder):
    shard(folder)
    new = tiny_model(seed=1)
    save_model(folder, new)
    jax.tree.map(np.testing.assert_array_equal, load_model(folder).variables, new.variables)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", SINGLE]


def test_one_file_wins_over_an_index_left_behind(folder):
    whole = (folder / SINGLE).read_bytes()
    weight_map = shard(folder)
    (folder / SINGLE).write_bytes(whole)
    for damage in ("index without its shards", "no JSON"):
        if damage == "no JSON":
            (folder / INDEX).write_text("{")
        for name in set(weight_map.values()):
            (folder / name).unlink(missing_ok=True)
        again = load_model(folder)
        jax.tree.map(np.testing.assert_array_equal, again.variables, tiny_model().variables)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/outside.safetensors", "a/b", "", 5])
def test_an_index_does_not_lead_out_of_its_folder(folder, place):
    weight_map = shard(folder)
    shutil.copy(folder / min(weight_map.values()), folder.parent / "outside.safetensors")
    write_index(folder, {**weight_map, min(weight_map): place})
    with pytest.raises(
        ValueError, match=r"index.json: weight_map names the file .* in the folder of the index"
    ):
        load_model(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    weight_map = shard(folder)
    first, second = sorted(set(weight_map.values()))
    extra = min(weight_map)
    save_file(
        {**load_file(folder / second), extra: load_file(folder / first)[extra]}, folder / second
    )
    with pytest.raises(ValueError, match="two of its shards contain"):
        load_model(folder)


def test_a_stored_head_beside_a_tied_one_counts_where_it_differs(folder):
    """As transformers 5 has it; the oracle test below compares logits."""
    embedding = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    assert load_model(folder).config.tied_head
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    untied = load_model(folder)
    assert not untied.config.tied_head
    save_model(folder, untied)
    again = load_model(folder)
    np.testing.assert_array_equal(again.logits({}, TOKENS), untied.logits({}, TOKENS))
    assert not load_config(folder).tied_head


def test_the_only_matrix_of_a_tied_pair_is_both(folder):
    edit(folder, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    np.testing.assert_array_equal(
        load_model(folder).logits({}, TOKENS), tiny_model().logits({}, TOKENS)
    )


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"base_model.model.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module.base_model.model.{name}",
        lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    ],
)
def test_names_that_other_programs_wrote_are_understood(folder, rename):
    edit(folder, lambda t: [t.update({rename(name): t.pop(name)}) for name in list(t)])
    jax.tree.map(
        np.testing.assert_array_equal, load_model(folder).variables, tiny_model().variables
    )


def test_two_tensors_of_one_name_are_refused(folder):
    edit(folder, lambda t: t.update({"norm.weight": t["model.norm.weight"]}))
    with pytest.raises(ValueError, match=r"are both model.norm.weight; keep the right one"):
        load_model(folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_derived_buffers_are_ignored_in_every_family(kind):
    family = FAMILIES[kind]
    for name in ("layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq",
                 "h.3.attn.bias", "layers.2.attention.masked_bias"):  # fmt: skip
        assert is_derived(family_name(name, family.tensors))
    names = [tensor.name.format(i=0) for tensor in family.tensors.values()]
    assert not any(map(is_derived, names))
    assert [family_name(name, family.tensors) for name in names] == names


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0},
          "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "contradict each other"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
         "partial_rotary_factor=0.5 with rope scaling 'linear'"),
        ({**NEOX, "rope_theta": 5.0}, "rope_theta=5.0 contradicts rotary_emb_base=10000"),
        ({**MISTRAL, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
         "layer_types contradict sliding_window=8"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
         "disabled by use_sliding_window"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "has 1 entries"),
        ({"model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' is not"),
        ({"head_dim": 3}, "head_dim=3, of which 1 is rotated"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(raw, words):
    with pytest.raises(ValueError, match=words):
        read_config({**LLAMA, **raw})


def test_what_the_reference_ignores_is_ignored():
    """transformers' Llama and Qwen read no partial_rotary_factor, Mistral slides by default."""
    said = {**LLAMA, "partial_rotary_factor": 0.5}
    assert read_config(said).rope == read_config(LLAMA).rope
    assert read_config({**said, "model_type": "phi3"}).rope.fraction == 0.5
    assert read_config(MISTRAL).sliding_window == 4096
    assert read_config({**MISTRAL, "sliding_window": None}).sliding_window is None
    same = {"rope_type": "linear", "factor": 2.0}
    both = {**LLAMA, "rope_scaling": same, "rope_parameters": {**same, "rope_theta": 10000.0}}
    assert read_config(both).rope.factor == 2.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**6), ("num_hidden_layers", 10**30), ("num_hidden_layers", True),
        ("hidden_size", "16"), ("hidden_size", 16.0), ("vocab_size", -1), ("rope_theta", 0),
        ("rms_norm_eps", float("nan")), ("rms_norm_eps", None), ("tie_word_embeddings", "false"),
        ("rope_parameters", []), ("hidden_act", ["silu"]), ("num_attention_heads", 0),
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_type_or_size_is_named(name, value):
    with pytest.raises(ValueError, match=f"config.json: {name} must be "):
        read_config({**LLAMA, name: value})


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_field_that_is_read_has_a_kind(kind, monkeypatch):
    read = set()

    def note(self, name):
        read.add(name)
        self.seen.add(name)
        return self.raw[name]

    monkeypatch.setattr(Reader, "__getitem__", note)
    raw = LLAMA
    if kind == "gpt2":
        raw = {"vocab_size": 32, "n_head": 4, "n_embd": 16, "n_layer": 2, "n_positions": 8}
    read_config({**raw, "model_type": kind})
    assert read <= set(KINDS)


def test_weights_that_are_not_finite_are_named(folder):
    for bad in (np.nan, np.inf, -np.inf):
        edit(folder, lambda t, bad=bad: t["model.norm.weight"].__setitem__(3, bad))
        with pytest.raises(ValueError, match=r"safetensors: model.norm.weight holds numbers that"):
            load_model(folder)
    edit(folder, lambda t: t["model.norm.weight"].__setitem__(3, 1e6))
    load_model(folder)
    with pytest.raises(ValueError, match="too large for float16"):
        load_model(folder, dtype="float16")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_finite_is_numpy_s(dtype):
    values = np.array([0, -0.0, 1, -1, 6e4, np.finfo(np.float16).tiny], np.float64).astype(dtype)
    assert is_finite(values)
    assert is_finite(values[:0])
    for bad in (np.nan, np.inf, -np.inf):
        assert not is_finite(np.append(values, np.asarray(bad, dtype)))


def test_integers_are_no_weights(folder):
    edit(folder, lambda t: t.update({"model.norm.weight": np.ones(16, np.int8)}))
    with pytest.raises(ValueError, match="model.norm.weight is int8, which are codes"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", SINGLE, "generation_config.json"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_named(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for make in (lambda: None, lambda: (folder / name).unlink() or (folder / name).mkdir()):
        make()
        with pytest.raises(ValueError, match=f"{name} is a folder, a pipe or a device"):
            load_model(folder)


def test_files_are_as_readable_as_any_other_new_file(folder):
    other = folder / "other"
    other.touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (other, folder / SINGLE)}
    assert modes == {stat.S_IMODE(other.stat().st_mode)}


def test_an_adapter_in_place_of_a_model_says_what_its_base_is(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(
        FileNotFoundError, match="holds an adapter and no model; load its base, 'org"
    ):
        load_config(tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "case", ["head", "partial", "prefix", "stale", "twice", "gemma3", "neox", "mistral"]
)
def test_ambiguous_folders_are_read_as_transformers_reads_them(tmp_path, case):
    import torch
    import transformers

    changes = {
        "head": {"tie_word_embeddings": True},
        "partial": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                        "partial_rotary_factor": 0.5}},
        "gemma3": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 3,
                   "layer_types": ["sliding_attention", "full_attention"]},
        "neox": NEOX,
        "mistral": MISTRAL,
    }.get(case, {})  # fmt: skip
    raw = {**LLAMA, "num_key_value_heads": 2, **changes}
    shapes = expected_tensors(FAMILIES[raw["model_type"]], read_config(raw))
    rng = np.random.default_rng(0)
    tensors = {name: 0.3 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    if case == "head":
        tensors["lm_head.weight"] = rng.standard_normal((32, 16), np.float32)
    if case == "prefix":
        tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    if case == "stale":
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "model-1-of-1.safetensors"}}))
    if case == "twice":
        raw["rope_theta"], raw["rope_scaling"] = 5000.0, {"type": "linear", "factor": 2.0}
        raw["rope_parameters"] = {"rope_type": "linear", "factor": 2.0}
    if case == "gemma3":
        raw["rope_parameters"] = {"full_attention": {"rope_type": "default"}}
        raw["rope_local_base_freq"], raw["hidden_act"] = 777.0, "relu"
    if case == "neox":
        raw["rotary_emb_base"], raw["rotary_pct"] = 555.0, 0.5
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype="float32"
    ).eval()
    ids = np.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(load_model(tmp_path).logits({}, ids), expected, atol=1e-4)
