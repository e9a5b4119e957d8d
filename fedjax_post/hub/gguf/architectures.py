"""What a GGUF file calls things, and how it stores them, as Hugging Face's files have it.

The names and changes are those of llama.cpp's `convert_hf_to_gguf.py`: rows of queries and keys are
permuted in llama files, norms of Gemma are stored with one added. A field of the architecture that
is not known here is refused, since it may change the forward pass.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.hub.gguf.container import Gguf, Stored, import_gguf
from fedjax_post.hub.tensors import Entry, shorten

Json = dict[str, Any]

ENDS = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PRE = {**_LINEARS, "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_SANDWICH = {
    **_LINEARS,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {**_PRE, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
FREQUENCIES = "rope_freqs.weight"  # of a model's config, not of its weights
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original": 8192}


class Architecture(NamedTuple):
    """One value of `general.architecture`."""

    model_type: str
    class_name: str
    names: Mapping[str, str]  # of a layer's tensors, theirs -> Hugging Face's
    more_fn: Callable[["Fields"], Json] = lambda fields: {}  # what of config.json is its own
    permuted: bool = False  # rows of queries and keys are in the order of pairs
    norm_plus_one: bool = False


class Fields:
    """The fields of a file's architecture; those that nobody asked for are refused at the end."""

    def __init__(self, file: Gguf):
        self.file, self.kind = file, str(file.fields.get("general.architecture"))
        # of files for training, and counts that follow from the tensors
        self.read = {f"{self.kind}.{name}" for name in ("vocab_size", "rope.scaling.finetuned")}

    def get(self, name: str, default: Any = None) -> Any:
        """Returns `<architecture>.<name>`, or the default where the file has none."""
        full = f"{self.kind}.{name}"
        self.read.add(full)
        return self.file.fields.get(full, default)

    def need(self, name: str) -> Any:
        """Returns `<architecture>.<name>`; ValueError where the file has none."""
        value = self.get(name)
        if value is None:
            raise ValueError(f"{self.file.path} lacks the field {self.kind}.{name}")
        return value

    def refuse_rest(self) -> None:
        """Refuses fields that were not read."""
        own = {name for name in self.file.fields if name.startswith(f"{self.kind}.")}
        if rest := sorted(own - self.read):
            values = (f"{name}={self.file.fields[name]}" for name in rest)
            raise ValueError(
                f"{self.file.path} has fields that are not understood: {shorten(values)}; use the "
                "safetensors files of this model"
            )


def config_json(file: Gguf) -> Json:
    """Returns the config.json that a file's metadata describe, as `read_config` takes it.

    Raises:
      ValueError: for another architecture, missing fields, and fields that are not understood.
    """
    fields = Fields(file)
    architecture = _architecture(fields)
    heads, width = fields.need("attention.head_count"), fields.need("embedding_length")
    if not all(isinstance(n, int) and n > 0 for n in (heads, width)):
        raise ValueError(f"{file.path} has {heads} heads of attention and a width of {width}")
    head_dim = fields.get("attention.key_length") or width // heads
    if fields.get("attention.value_length", head_dim) != head_dim:
        raise ValueError(f"{file.path} has values of another length than keys; not supported")
    names = set(file.tensors)
    raw = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": _rows(file, "token_embd.weight"),
        "hidden_size": width,
        "intermediate_size": fields.need("feed_forward_length"),
        "num_hidden_layers": fields.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.need("context_length"),
        "rms_norm_eps": fields.need("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.get("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        **({"mlp_bias": True} if "blk.0.ffn_up.bias" in names else {}),
        **_token_ids(file),
        **_rope_scaling(fields, head_dim),
    }
    raw |= architecture.more_fn(fields)
    rotated = fields.get("rope.dimension_count", head_dim)
    if rotated != head_dim and architecture.model_type != "phi3":
        raise ValueError(f"{file.path} rotates {rotated} of {head_dim}; not supported")
    fields.refuse_rest()
    return {name: value for name, value in raw.items() if value is not None}


def family_entries(file: Gguf) -> dict[str, Entry]:
    """Returns the tensors by the names of Hugging Face's files, unread, as those files have them.

    Raises:
      ValueError: for a tensor without a place, or of blocks that cannot be decoded.
    """
    fields = Fields(file)
    architecture = _architecture(fields)
    heads = {"attn_q": fields.need("attention.head_count")}
    heads["attn_k"] = fields.get("attention.head_count_kv", heads["attn_q"])
    found: dict[str, Entry] = {}
    for name, stored in file.tensors.items():
        if name == FREQUENCIES:  # `config_json` has read it
            continue
        part, layer, suffix = _split(name)
        known = architecture.names if layer else ENDS
        if part not in known or suffix not in ("weight", "bias") or len(stored.shape) > 2:
            raise ValueError(
                f"{file.path}: {name} has no place in a {architecture.model_type}; use the "
                "safetensors files of this model"
            )
        order = None
        if architecture.permuted and part in heads:
            order = row_order(stored.shape[0], heads[part])
        added = 1.0 if architecture.norm_plus_one and part.endswith("norm") else 0.0
        theirs = f"model.layers.{layer}.{known[part]}" if layer else known[part]
        found[f"{theirs}.{suffix}"] = _entry(file, name, stored, order=order, added=added)
    return found


def _architecture(fields: Fields) -> Architecture:
    if fields.kind not in ARCHITECTURES:
        raise ValueError(
            f"{fields.file.path}: general.architecture={fields.kind} is not supported; supported "
            f"are {', '.join(ARCHITECTURES)}; use the safetensors files of this model"
        )
    return ARCHITECTURES[fields.kind]


def _split(name: str) -> tuple[str, str, str]:
    """A tensor's part, layer ("" if it is in none) and suffix."""
    name, _, suffix = name.rpartition(".")
    if name.startswith("blk."):
        _, layer, part = (*name.split(".", 2), "", "")[:3]
        return part, layer, suffix
    return name, "", suffix


def row_order(num_rows: int, num_heads: int) -> np.ndarray:
    """Returns where the rows of Hugging Face's order lie: halves of a head, stored as pairs."""
    if num_rows % (2 * num_heads):
        raise ValueError(f"{num_rows} rows are no pairs of {num_heads} heads")
    rows = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
    return rows.swapaxes(1, 2).ravel()


def _entry(
    file: Gguf, name: str, stored: Stored, *, order: np.ndarray | None, added: float
) -> Entry:
    where, kind = f"{file.path}: {name}", stored.kind.name
    dtype = np.dtype(np.float16 if kind == "F16" and not added else np.float32)
    if kind not in ("F32", "F16"):
        _check_decodes(where, stored)
    rows = partial(_read_rows, file.path, stored=stored, order=order, added=added)
    return Entry(where, dtype, stored.shape, rows)


def _check_decodes(where: str, stored: Stored) -> None:
    gguf = import_gguf()
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[stored.kind][1]), np.uint8)
    try:
        gguf.quants.dequantize(block, stored.kind)
    except NotImplementedError:
        raise ValueError(
            f"{where} is in blocks of {stored.kind.name}, which are not decoded; use a file with "
            "Q8_0 or Q4_K blocks"
        ) from None


def _read_rows(
    path: Path, start: int, stop: int, *, stored: Stored, order: np.ndarray | None, added: float
) -> np.ndarray:
    """Rows `[start, stop)` of a tensor in Hugging Face's order; of a vector, those numbers."""
    num_rows = stored.shape[0] if len(stored.shape) == 2 else 1
    size = num_rows * stored.row_bytes
    rows = np.memmap(path, np.uint8, "r", stored.offset, (size,)).reshape(num_rows, -1)
    chosen: Any = slice(start, stop) if order is None else order[start:stop]
    if len(stored.shape) == 2:
        values = _decode(rows[chosen], stored.kind)
    else:
        values = _decode(rows, stored.kind)[0][chosen]
    return values - np.float32(added) if added else values


def _decode(rows: np.ndarray, kind: Any) -> np.ndarray:
    if kind.name in ("F32", "F16"):
        return rows.view(np.float32 if kind.name == "F32" else np.float16)
    return import_gguf().quants.dequantize(np.ascontiguousarray(rows), kind)


def _rows(file: Gguf, name: str) -> int:
    if name not in file.tensors:
        raise ValueError(f"{file.path} lacks the tensor {name}; is it a whole model?")
    return file.tensors[name].shape[0]


def _token_ids(file: Gguf) -> Json:
    get = lambda name: file.fields.get(f"tokenizer.ggml.{name}_token_id")
    return {f"{name}_token_id": get(name) for name in ("bos", "eos")}


def _rope_scaling(fields: Fields, head_dim: int) -> Json:
    """Linear stretches, and those of Llama 3, whose factors are a tensor of the file."""
    kind = fields.get("rope.scaling.type", "linear")  # as llama.cpp has it: a factor alone counts
    factor = fields.get("rope.scaling.factor") or 1.0
    fields.get("rope.scaling.original_context_length")
    has_own = FREQUENCIES in fields.file.tensors
    stretches = kind == "linear" and factor != 1
    if kind not in ("none", "linear") or (has_own and stretches):
        both = f" with factor={factor} and the tensor {FREQUENCIES}" if has_own else ""
        raise ValueError(
            f"{fields.file.path}: {fields.kind}.rope.scaling.type={kind}{both} is not supported; "
            "use the safetensors files of this model"
        )
    if has_own:
        return {"rope_scaling": _llama3_scaling(fields, head_dim)}
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}} if stretches else {}


def _llama3_scaling(fields: Fields, head_dim: int) -> Json:
    """The scaling whose factors are those of the file; none other is understood."""
    stored = fields.file.tensors[FREQUENCIES]
    given = _read_rows(fields.file.path, 0, stored.shape[0], stored=stored, order=None, added=0.0)
    theta, factor = fields.get("rope.freq_base", 10000.0), float(given.max())
    low, high, original = _LLAMA3.values()
    lengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    expected = np.where(lengths < original / high, 1.0, between)
    expected = np.where(lengths > original / low, factor, expected)
    if given.shape != expected.shape or not np.allclose(given, expected, rtol=1e-4):
        raise ValueError(
            f"{fields.file.path}: {FREQUENCIES} stretches positions in a way that is not "
            "understood; use the safetensors files of this model"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _gemma(fields: Fields, *, largest: int) -> Json:
    """What Gemma 2 and 3 share; queries of the model of most layers are scaled by its width."""
    head_dim = fields.need("attention.key_length")
    is_largest = fields.need("block_count") == largest
    by_width = fields.need("embedding_length") // fields.need("attention.head_count")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": by_width if is_largest else head_dim,
        "sliding_window": fields.need("attention.sliding_window"),
    }


def _gemma2(fields: Fields) -> Json:
    return {
        **_gemma(fields, largest=46),
        "attn_logit_softcapping": fields.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": fields.get("final_logit_softcapping", 30.0),
    }


def _gemma3(fields: Fields) -> Json:
    return {
        **_gemma(fields, largest=62),
        "rope_theta": fields.get("rope.freq_base", 1000000.0),
        "rope_local_base_freq": fields.get("rope.freq_base_swa", 10000.0),
    }


def _qwen2(fields: Fields) -> Json:
    del fields
    return {"attention_bias": None}  # of queries, keys and values always, of the output never


def _phi3(fields: Fields) -> Json:
    head_dim = fields.need("embedding_length") // fields.need("attention.head_count")
    window = fields.get("attention.sliding_window")
    share = fields.get("rope.dimension_count", head_dim) / head_dim
    return {
        "attention_bias": None,
        "head_dim": None,
        "hidden_act": "silu",
        **({"partial_rotary_factor": share} if share != 1 else {}),
        **({"sliding_window": window} if window else {}),
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _SANDWICH, _gemma2, norm_plus_one=True),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", _SANDWICH, _gemma3, norm_plus_one=True
    ),
    "llama": Architecture("llama", "LlamaForCausalLM", _PRE, permuted=True),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", _SANDWICH),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _FUSED, _phi3),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _PRE, _qwen2),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _PRE),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _PRE, permuted=True),
}
