"""GGUF files as llama.cpp's converter writes them, from a config.json and its tensors."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

from fedjax_post.hub.families import FAMILIES, read_config
from fedjax_post.hub.load import load_model
from fedjax_post.hub.weights import expected_tensors
from fedjax_post.testing.models import seeded_tensors

GOLDEN = Path(__file__).parent.parent / "model" / "golden"

ARCHITECTURES = {"gemma3_text": "gemma3"}
# the converter's own table of names, from the library that the converter uses
MAPS = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}


def permute(weights, num_heads):
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    shape = num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:]
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def write_model(path, raw, tensors, *, kind="F32", tokenizer=None, more=None):
    """Writes matrices in blocks of `kind` where their rows are whole blocks, all else as F32."""
    name = ARCHITECTURES.get(raw["model_type"], raw["model_type"])
    writer = gguf.GGUFWriter(path, name)
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads") or heads
    head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
    writer.add_vocab_size(raw["vocab_size"])
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    _add_rope(writer, raw, head_dim)
    if name != "phi3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if name in ("gemma2", "gemma3"):
        writer.add_sliding_window(raw["sliding_window"])
    if name == "phi3" and raw.get("sliding_window"):
        writer.add_sliding_window(raw["sliding_window"])
    if name == "gemma2":
        writer.add_attn_logit_softcapping(raw["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(raw["final_logit_softcapping"])
    if raw.get("bos_token_id") is not None:
        writer.add_bos_token_id(raw["bos_token_id"])
    for add, *given in tokenizer or []:
        getattr(writer, add)(*given)
    for add, *given in more or []:
        getattr(writer, add)(*given)
    names = gguf.get_tensor_name_map(MAPS[name], raw["num_hidden_layers"])
    for theirs, array in tensors.items():
        array = np.asarray(array, np.float32)
        if name in ("llama", "smollm3"):
            if re.search(r"q_proj\.(weight|bias)$", theirs):
                array = permute(array, heads)
            if re.search(r"k_proj\.(weight|bias)$", theirs):
                array = permute(array, kv_heads)
        if name in ("gemma2", "gemma3") and theirs.endswith("norm.weight"):
            array = array + 1
        found = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert found, theirs
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        if array.ndim == 2 and array.shape[1] % block == 0 and kind != "F32":
            blocks = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
            writer.add_tensor(found, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(found, np.ascontiguousarray(array))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_rope(writer, raw, head_dim):
    stated = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = stated.get("rope_type", "default")
    if "full_attention" in stated:  # Gemma 3, by kind of layer
        stated = stated["full_attention"]
        kind = stated.get("rope_type", "default")
    theta = stated.get("rope_theta") or raw.get("rope_theta")
    if theta:
        writer.add_rope_freq_base(theta)
    share = stated.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    writer.add_rope_dimension_count(int(head_dim * share))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(stated["factor"])
    if kind == "llama3":  # `LlamaModel.generate_extra_tensors`
        freqs = 1.0 / (theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim))
        low, high = stated["low_freq_factor"], stated["high_freq_factor"]
        old = stated["original_max_position_embeddings"]
        factors = []
        for freq in freqs:
            length = 2 * np.pi / freq
            if length < old / high:
                factors.append(1)
            elif length > old / low:
                factors.append(stated["factor"])
            else:
                smooth = (old / length - low) / (high - low)
                factors.append(1 / ((1 - smooth) / stated["factor"] + smooth))
        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))


# what was published; a file has no place for other values
PUBLISHED = {
    "llama_llama3": {
        "rope_theta": 500000.0,
        "rope_parameters": None,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "gemma2": {"query_pre_attn_scalar": 8, "head_dim": 8},
    "gemma3_text": {
        "query_pre_attn_scalar": 8,
        "head_dim": 8,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
        "_sliding_window_pattern": 6,
    },
}
PUBLISHED["gemma3_text_linear"] = PUBLISHED["gemma3_text"] | {
    "num_hidden_layers": 7,
    "layer_types": None,
    "rope_parameters": {
        "full_attention": {"factor": 8.0, "rope_theta": 1000.0, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
}


def case_of(name, **changes):
    """A config.json as its own family has it, and seeded tensors."""
    raw = json.loads(str(np.load(GOLDEN / f"{name}.npz")["config"]))
    raw |= PUBLISHED.get(name, PUBLISHED.get(raw["model_type"], {})) | changes
    return raw, seeded_tensors(expected_tensors(FAMILIES[raw["model_type"]], read_config(raw)), 7)


def folder_of(tmp_path, raw, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return load_model(tmp_path)
