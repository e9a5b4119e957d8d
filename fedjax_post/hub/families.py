"""The supported model families as a table: how to read a family's config.json and tensor names.

To add a family: write a function from its config.json to the fields of
`DecoderConfig` (read every field that changes the forward pass, and `require` those
of which only one value is supported), list its tensors, add the row to `FAMILIES`,
add three configs to `tests/model/golden/make.py` and run it, and add a published
checkpoint to `facts.py`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_post.hub.fields import (
    Json,
    Reader,
    check_length,
    read_activation,
    read_sliding,
    refuse_unread,
    require,
)
from fedjax_post.hub.names import GPT2, LLAMA, NEOX, SANDWICH, Tensor
from fedjax_post.hub.ropes import check_rotation, read_rope
from fedjax_post.model.config import DecoderConfig


class Family(NamedTuple):
    """One row of the table: a model_type."""

    config: Callable[[Json], dict[str, Any]]  # config.json -> fields of DecoderConfig
    tensors: Mapping[str, Tensor]  # our dotted path -> the published name
    inside: str = ""  # prefix of all its names in a file that holds more than a text model


def read_config(raw: Json) -> DecoderConfig:
    """Returns the config that a parsed config.json describes, with dtype float32.

    Raises:
      ValueError: for an unsupported model_type, a field of a wrong type or size, or an unknown
        switch. An unknown switch is never ignored.

    Example:
      >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
      >>> raw = {"model_type": "llama", "vocab_size": 32, "num_attention_heads": 2, **sizes}
      >>> config = read_config(raw)
      >>> config.num_layers, config.head_dim, config.tied_head
      (2, 4, False)
    """
    raw = _text_part(raw)
    family = find_family(raw)
    if raw.get("quantization_config"):
        raise ValueError(
            f"config.json: quantization_config={raw['quantization_config']} is not supported; "
            "use the unquantized weights of this model"
        )
    reader = Reader(raw)
    try:
        fields = {"vocab_size": reader["vocab_size"], **family.config(reader)}
    except KeyError as error:
        raise ValueError(f"config.json of a {raw['model_type']} lacks the field {error}") from None
    refuse_unread(reader)
    source = json.dumps(dict(raw), sort_keys=True)
    bos = reader.get("bos_token_id")
    fields["bos_id"] = bos if type(bos) is int and 0 <= bos < fields["vocab_size"] else None
    try:
        return check_rotation(DecoderConfig(model_type=raw["model_type"], source=source, **fields))
    except ValueError as error:
        raise ValueError(f"config.json: {error}") from None


def find_family(raw: Json) -> Family:
    """Returns the family of a config.json.

    Raises:
      ValueError: for a model_type that is not supported.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {kind!r} is not supported; supported are "
            f"{sorted({*FAMILIES, *TEXT_PARTS})}; "
            "to add a family, write its row in fedjax_post/hub/families.py, as described there"
        )
    return FAMILIES[kind]


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a model: the one it was read from, otherwise a Llama's.

    Raises:
      ValueError: if the config was made in code and a Llama's config.json cannot express it.
    """
    if config.source:
        return json.loads(config.source)
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "hidden_act": config.activation,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta if config.rope else 0.0,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_head,
    }
    if config.bos_id is not None:
        raw["bos_token_id"] = config.bos_id
    written, wanted = vars(read_config(raw)), vars(config)
    free = ("source", "dtype", "remat")
    changed = [name for name in written if name not in free and written[name] != wanted[name]]
    if changed:
        raise ValueError(
            f"only Llama's architecture can be written without a config.json; {changed} differ; "
            "make the config with read_config from a config.json of its family"
        )
    return raw


def _llama(raw: Json, **rope: Any) -> dict[str, Any]:
    """Returns the fields of Llama 1 to 3.x and similar models; `rope` is passed to `read_rope`."""
    require(raw, {"pretraining_tp": 1})
    heads = raw["num_attention_heads"]
    bias = bool(raw.get("attention_bias", False))
    return {
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"],
        "num_layers": raw["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
        "max_positions": raw.get("max_position_embeddings", 2048),
        "activation": read_activation(raw.get("hidden_act", "silu")),
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "tied_head": bool(raw.get("tie_word_embeddings", False)),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "rope": read_rope(raw, **rope),
    }


def _mistral(raw: Json, *, window: int | None = 4096, **rope: Any) -> dict[str, Any]:
    """Returns the fields of Mistral: all layers slide, or none; layer_types are not read."""
    window = raw.get("sliding_window", window)
    slides = [window is not None] * raw["num_hidden_layers"]
    return {**_llama(raw, **rope), **read_sliding(raw, slides, window=window, listed=False)}


def _smollm3(raw: Json) -> dict[str, Any]:
    """Returns the fields of SmolLM 3: every fourth layer has no rotary positions."""
    layers = raw["num_hidden_layers"]
    every = raw.get("no_rope_layer_interval", 4)
    has_rope = raw.get("no_rope_layers") or [(i + 1) % every != 0 for i in range(layers)]
    check_length("no_rope_layers", has_rope, layers)
    slides = bool(raw.get("sliding_window")) and bool(raw.get("use_sliding_window"))
    return {
        **_llama(raw, theta=2e6),
        "tied_head": bool(raw.get("tie_word_embeddings", True)),
        "no_rope_layers": tuple(i for i, rope in enumerate(has_rope) if not rope),
        **read_sliding(
            raw, [slides and not rope for rope in has_rope], window=raw.get("sliding_window")
        ),
    }


def _qwen2(raw: Json) -> dict[str, Any]:
    """Returns the fields of Qwen 2: biases on queries, keys and values; late layers may slide."""
    layers = range(raw["num_hidden_layers"])
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None
    first = raw.get("max_window_layers", 28)
    slides = [window is not None and i >= first for i in layers]
    return {**_llama(raw), "qkv_bias": True, **read_sliding(raw, slides, window=window)}


def _qwen3(raw: Json) -> dict[str, Any]:
    """Returns the fields of Qwen 3: as Qwen 2, normalised queries and keys, optional biases."""
    fields = {**_qwen2(raw), "qkv_bias": bool(raw.get("attention_bias", False)), "qk_norm": "head"}
    return {**fields, "head_dim": raw.get("head_dim") or 128}


def _gemma(raw: Json, *, period: int, **rope: Any) -> dict[str, Any]:
    """Returns the fields that Gemma 2 and 3 share; one layer in `period` is global."""
    require(raw, {"use_bidirectional_attention": False})
    layers = range(raw["num_hidden_layers"])
    return {
        **_llama(raw, **rope),
        "head_dim": raw.get("head_dim") or 256,
        "activation": read_activation(raw.get("hidden_activation") or "gelu_pytorch_tanh"),
        "tied_head": bool(raw.get("tie_word_embeddings", True)),
        "norm": "rms_plus_one",
        "norm_place": "sandwich",
        "embedding_scale": float(raw["hidden_size"]) ** 0.5,
        "query_scale": float(raw.get("query_pre_attn_scalar", 256)) ** -0.5,
        **read_sliding(
            raw, [(i + 1) % period != 0 for i in layers], window=raw.get("sliding_window", 4096)
        ),
    }


def _gemma2(raw: Json) -> dict[str, Any]:
    """Returns the fields of Gemma 2: soft caps, sandwich norms, every second layer global."""
    return {
        **_gemma(raw, period=2),
        "attention_softcap": raw.get("attn_logit_softcapping", 50.0),
        "logit_softcap": raw.get("final_logit_softcapping", 30.0),
    }


def _gemma3(raw: Json) -> dict[str, Any]:
    """Returns the fields of Gemma 3: query and key norms, two rope bases, every sixth global."""
    period = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
    return {
        **_gemma(raw, period=period, by_layer="full_attention", theta=1e6),
        "attention_softcap": raw.get("attn_logit_softcapping"),
        "logit_softcap": raw.get("final_logit_softcapping"),
        "qk_norm": "head",
        "sliding_rope": read_rope(
            raw, by_layer="sliding_attention", theta=1e4, theta_name="rope_local_base_freq"
        ),
    }


def _text_part(raw: Json) -> Json:
    """Returns the config.json of the text part of a model that also reads images.

    For other models this is their config.json. The files of such models omit fields that are as in
    the smallest model, so defaults are added. The result is loaded and exported as a text model.
    """
    if not isinstance(raw.get("model_type"), str) or raw["model_type"] not in TEXT_PARTS:
        return raw
    kind, architecture, defaults = TEXT_PARTS[raw["model_type"]]
    above = {name: raw[name] for name in ("quantization_config",) if name in raw}
    text = raw.get("text_config", {})
    if not isinstance(text, dict):
        raise ValueError(f"config.json: text_config must be an object, got a {type(text).__name__}")
    stated = {**defaults, **above, **text}
    return {**stated, "model_type": kind, "architectures": [architecture]}


def _olmo(raw: Json) -> dict[str, Any]:
    """Returns the fields of OLMo: norms without parameters, clipped queries, keys and values."""
    clip = raw.get("clip_qkv")
    return {**_llama(raw), "norm": "layer_plain", "norm_eps": 1e-5, "clip_qkv": clip}


def _olmo2(raw: Json) -> dict[str, Any]:
    """Returns the fields of OLMo 2: norms after each half layer, and over all queries and keys."""
    fields = {**_llama(raw), "norm_place": "post", "qk_norm": "flat"}
    return {**fields, "norm_eps": raw.get("rms_norm_eps", 1e-5)}


def _phi3(raw: Json) -> dict[str, Any]:
    """Returns the fields of Phi 3: as Mistral, fused projections, perhaps partial rotation."""
    fraction = raw.get("partial_rotary_factor") or 1.0
    fields = _mistral(raw, window=None, fraction=fraction, kinds=("default",))
    fields |= {"fused_qkv": "blocks", "fused_gate_up": True}
    return {**fields, "norm_eps": raw.get("rms_norm_eps", 1e-5)}


def _gpt_neox(raw: Json) -> dict[str, Any]:
    """Returns the fields of GPT-NeoX: parallel residuals, a quarter rotated, fused by head."""
    fraction = raw.get("rotary_pct", 0.25)
    return {
        **_llama(raw, fraction=fraction, theta_name="rotary_emb_base"),
        **_gpt_shape(raw.get("attention_bias", True)),
        "activation": read_activation(raw.get("hidden_act", "gelu")),
        "norm_eps": raw.get("layer_norm_eps", 1e-5),
        "num_kv_heads": raw["num_attention_heads"],
        "parallel_residual": bool(raw.get("use_parallel_residual", True)),
        "fused_qkv": "heads",
    }


def _gpt2(raw: Json) -> dict[str, Any]:
    """Returns the fields of GPT-2: learned positions, no rotary ones."""
    require(
        raw,
        {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
        },
    )
    heads, width = raw["n_head"], raw["n_embd"]
    return {
        **_gpt_shape(True),
        "hidden_size": width,
        "intermediate_size": raw.get("n_inner") or 4 * width,
        "num_layers": raw["n_layer"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "max_positions": raw["n_positions"],
        "activation": read_activation(raw.get("activation_function", "gelu_new")),
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "tied_head": bool(raw.get("tie_word_embeddings", True)),
        "fused_qkv": "blocks",
        "rope": None,
        "learned_positions": True,
    }


def _gpt_shape(bias: bool) -> dict[str, Any]:
    """Returns the fields that the GPTs share: layer norms, biases, an MLP without gate."""
    return {
        "norm": "layer",
        "gated_mlp": False,
        "qkv_bias": bool(bias),
        "out_bias": bool(bias),
        "mlp_bias": True,
    }


# model_type of a model that also reads images -> model_type, class and defaults of its text part
TEXT_PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            "vocab_size": 262208,
            "bos_token_id": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
        },
    )
}
FAMILIES: dict[str, Family] = {
    "gemma2": Family(_gemma2, SANDWICH),
    "gemma3_text": Family(_gemma3, SANDWICH, inside="language_model."),
    "gpt2": Family(_gpt2, GPT2),
    "gpt_neox": Family(_gpt_neox, NEOX),
    "llama": Family(_llama, LLAMA),
    "mistral": Family(_mistral, LLAMA),
    "olmo": Family(_olmo, LLAMA),
    "olmo2": Family(_olmo2, SANDWICH),
    "phi3": Family(_phi3, LLAMA),
    "qwen2": Family(_qwen2, LLAMA),
    "qwen3": Family(_qwen3, LLAMA),
    "smollm3": Family(_smollm3, LLAMA),
}
