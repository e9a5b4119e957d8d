"""A GGUF file that is written here is the merged model, or its adapter."""

import dataclasses

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
from gguf_files import case_of, folder_of, write_model  # noqa: E402

from fedjax_post.adapters.lora import add_lora, lora_delta, merge_lora  # noqa: E402
from fedjax_post.adapters.prompt import text_prompt  # noqa: E402
from fedjax_post.hub.gguf import header_facts  # noqa: E402
from fedjax_post.hub.gguf.container import read_gguf  # noqa: E402
from fedjax_post.hub.gguf.write import KINDS, save_gguf_adapter, save_gguf_model  # noqa: E402
from fedjax_post.hub.load import load_model  # noqa: E402
from fedjax_post.hub.peft import save_adapter  # noqa: E402

MORE = [("add_name", "own"), ("add_tags", ["a"])]


@pytest.mark.parametrize("name", ["llama_tied", "qwen3_tied", "gemma2_default", "phi3_plain"])
def test_a_merged_model_is_read_back_as_it_was_written(name, tmp_path):
    raw, tensors = case_of(name)
    write_model(tmp_path / "base.gguf", raw, tensors, more=MORE)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", model, params, kind="F32")
    wanted, found = merge_lora(model, params), load_model(tmp_path / "out.gguf")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7)
    jax.tree.map(close, found.variables["params"], wanted.variables["params"])
    before, after = (read_gguf(tmp_path / f"{file}.gguf").fields for file in ("base", "out"))
    blocks = {"general.file_type": 0, "general.quantization_version": gguf.GGML_QUANT_VERSION}
    assert after == before | blocks
    if name == "llama_tied":
        with pytest.raises(ValueError, match="kind=Q4_K must be one of F32"):
            save_gguf_model(tmp_path / "x", tmp_path / "base.gguf", model, kind="Q4_K")


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama_tied", "gemma2_default"])
def test_a_merged_model_is_of_float32_sums_whatever_the_models_dtype(name, dtype, tmp_path):
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, *case_of(name))
    model, params = adapted(load_model(base, dtype=dtype))
    params = jax.tree.map(lambda leaf: 0.01 * leaf, params)  # below bfloat16's step of a weight
    exact = dataclasses.replace(load_model(base), lora_layers=model.lora_layers)
    scales = {"lora_scale": model.variables["lora_scale"]}
    exact = dataclasses.replace(exact, variables={**exact.variables, **scales})
    save_gguf_model(out, base, model, params, kind="F32")
    found, wanted = load_model(out), merge_lora(exact, params)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7)
    jax.tree.map(close, found.variables["params"], wanted.variables["params"])


@pytest.mark.parametrize("within", [True, False])
def test_weights_trained_in_bfloat16_are_written_as_they_are(within, tmp_path):
    """The base's numbers stand in for the model's own only where these are their roundings."""
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, *case_of("llama_tied"))
    model = load_model(base, dtype="bfloat16")
    trained = jax.tree.map(lambda leaf: leaf + 0.125, model.variables["params"])
    changed = dataclasses.replace(model, variables={"params": trained})
    model, params = (changed, None) if within else (model, {"params": trained})
    save_gguf_model(out, base, model, params, kind="F32")
    same = lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32))
    jax.tree.map(same, load_model(out).variables["params"], trained)


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_codes_that_an_adapter_was_trained_on_are_merged(dtype, tmp_path):
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, *case_of("llama_tied", hidden_size=64, intermediate_size=64, head_dim=16))
    model, params = adapted(load_model(base, dtype=dtype, quantize="nf4"))
    save_gguf_model(out, base, model, params, kind="F32")
    found, wanted = load_model(out), merge_lora(model, params, dtype="float32")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    layers = found.variables["params"]["layers"], wanted.variables["params"]["layers"]
    jax.tree.map(close, layers[0]["attention"], layers[1]["attention"])


OF_BLOCKS = [
    ("add_file_type", gguf.LlamaFileType.MOSTLY_Q4_1),
    ("add_quantized_by", "someone"),
    ("add_quantization_version", 1),
    ("add_string", "quantize.imatrix.file", "someone.dat"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_says_which_blocks_it_has(kind, tmp_path):
    """And not which its base had, nor who made those."""
    raw, tensors = case_of("llama_tied", hidden_size=32, intermediate_size=32, head_dim=8)
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, raw, tensors, kind="Q4_1", more=[*MORE, *OF_BLOCKS])
    save_gguf_model(out, base, load_model(base), kind=kind)
    found = read_gguf(out)
    named = gguf.LlamaFileType(found.fields["general.file_type"]).name
    assert named.removeprefix("ALL_").removeprefix("MOSTLY_") == kind
    assert {stored.kind.name for stored in found.tensors.values()} == {kind, "F32"}
    said = dict(header_facts(found))
    assert said["quantised by"] == "the header names nobody"
    assert said["its header"] == "own"
    assert not [name for name in found.fields if name.startswith("quantize.")]
    assert found.fields["general.quantization_version"] == gguf.GGML_QUANT_VERSION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32, "head_dim": 8}, r"in \d+ tensors: blk.0.attn_k.weight is \(16, 32\)"),
        ({"num_hidden_layers": 3}, r"in 9 tensors: blk.2.\S+ is \(.*\) and missing"),
        ({"num_hidden_layers": 1}, r"in 9 tensors: blk.1.\S+ is missing and \("),
        ({"vocab_size": 44}, r"in 1 tensors: token_embd.weight is \(44, 16\) and \(40, 16\)"),
        ({"tie_word_embeddings": False}, "in 1 tensors: output.weight is .* and missing"),
    ],
)
def test_a_base_of_another_size_is_refused(change, message, tmp_path):
    """Its metadata would describe other tensors than those beside them."""
    raw, tensors = case_of("llama_tied")
    model = folder_of(tmp_path, raw, tensors)
    write_model(tmp_path / "other.gguf", *case_of("llama_tied", **change))
    with pytest.raises(ValueError, match=f"other.gguf and the model differ {message}.*; give the"):
        save_gguf_model(tmp_path / "out.gguf", tmp_path / "other.gguf", model)
    write_model(tmp_path / "other.gguf", *case_of("qwen2_tied"))
    with pytest.raises(ValueError, match="is a qwen2 and the model a llama; give the"):
        save_gguf_model(tmp_path / "out.gguf", tmp_path / "other.gguf", model)


@pytest.mark.parametrize("name", ["llama_tied", "qwen2_tied", "phi3_plain"])
def test_an_adapter_is_written_as_llama_cpp_converts_one(name, tmp_path):
    """B's rows in the order of the base's, A as it is; one alpha, which scales the product."""
    raw, tensors = case_of(name)
    write_model(tmp_path / "base.gguf", raw, tensors)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    save_gguf_adapter(tmp_path / "adapter.gguf", model, params)
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 4.0
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    reader = gguf.GGUFReader(tmp_path / "base.gguf")
    base = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", model, params, kind="F32")
    changed = 0
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        if f"{tensor.name}.lora_a" in found:  # what llama.cpp computes with
            a, b = found.pop(f"{tensor.name}.lora_a"), found.pop(f"{tensor.name}.lora_b")
            expected = base[tensor.name] + 4.0 / len(a) * b @ a
            np.testing.assert_allclose(tensor.data, expected, atol=1e-5)
            changed += 1
        else:
            np.testing.assert_array_equal(tensor.data, base[tensor.name])
    assert changed >= 4
    assert found == {}


def test_what_a_file_has_no_place_for_is_refused(tmp_path):
    """Whatever was folded into the base, or is read before a row, would be lost silently."""
    raw, tensors = case_of("llama_tied")
    write_model(tmp_path / "base.gguf", raw, tensors)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    words = text_prompt([1, 2])
    holds = lambda **more: dataclasses.replace(model, variables={**model.variables, **more})
    path, base = tmp_path / "out" / "a.gguf", tmp_path / "base.gguf"
    for changed, lost in ((holds(residual=lora_delta(model, params)), "residual"),
                          (holds(**words), "prompt")):  # fmt: skip
        for save in (save_gguf_adapter, save_adapter):
            with pytest.raises(ValueError, match=f"no place for .*{lost}.*; write"):
                save(path, changed, params)
    for changed, given in ((model, params | words), (holds(**words), params)):
        with pytest.raises(ValueError, match="no place for a prompt; .*save_prompt"):
            save_gguf_model(path, base, changed, given)
    assert not path.parent.exists()


def test_what_was_added_to_the_base_is_merged(tmp_path):
    raw, tensors = case_of("llama_tied")
    write_model(tmp_path / "base.gguf", raw, tensors)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    variables = {**model.variables, "residual": lora_delta(model, params)}
    twice = dataclasses.replace(model, variables=variables)
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", twice, params, kind="F32")
    ids = np.arange(20).reshape(2, 10)
    found = load_model(tmp_path / "out.gguf").logits({}, ids)
    np.testing.assert_allclose(found, twice.logits(params, ids), atol=1e-5)


# What transformers assumes instead of reading it from a file
ASSUMED = {
    "llama_tied": {},
    "qwen2_tied": {},
    "qwen3_tied": {"head_dim": 128},
    "phi3_plain": {},
    "gemma2_default": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3_text_default": {"head_dim": 256, "query_pre_attn_scalar": 256},
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", ASSUMED)
def test_a_file_is_what_transformers_reads_in_it(name, tmp_path):
    """The base as it was converted, and the model that was merged into it here.

    The other cases cannot be compared with transformers 5.24: it refuses the architectures olmo2
    and smollm3, and reads neither rope.scaling.* (the linear ones) nor rope_freqs.weight (Llama
    3's factors), nor phi3's rope.dimension_count (phi3_partial), nor other caps than Gemma 2's
    own (gemma2_caps): it computes other logits from such files, without a word.
    """
    raw, tensors = case_of(name, **ASSUMED[name])
    # of large weights, a head of 256 makes 1e-4 from float32's rounding alone
    tensors = {key: np.float32(0.5) * array for key, array in tensors.items()}
    pad = [("add_pad_token_id", 0)]  # without it, transformers takes 32000 for phi3
    write_model(tmp_path / "base.gguf", raw, tensors, more=pad)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", model, params, kind="F32")
    ids = np.arange(20).reshape(2, 10)
    for file, given in (("base", {}), ("out", params)):
        wanted = transformers_logits(tmp_path / f"{file}.gguf", ids)
        np.testing.assert_allclose(model.logits(given, ids), wanted, atol=1e-4)
        assert np.abs(wanted).max() > 0.1


def transformers_logits(path, ids):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def adapted(model):
    model, params = add_lora(model, jax.random.key(0), rank=2, alpha=4)
    # rows of B that differ, so that their order is seen
    draw = lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return model, jax.tree.map(lambda leaf: leaf + draw(leaf), params)
