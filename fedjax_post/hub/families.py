"""The families as rows of a table: how a config.json and its tensor names become ours."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_post.model.config import DecoderConfig, Rope

Json = Mapping[str, Any]


class Tensor(NamedTuple):
    """Where one of our leaves stands in a published file; `{i}` is the layer."""

    name: str
    transposed: bool = False  # stored [out, in], as torch's Linear does


class Family(NamedTuple):
    """One row: a model_type."""

    config: Callable[[Json], dict[str, Any]]  # config.json -> fields of DecoderConfig
    tensors: Mapping[str, Tensor]  # our dotted path -> theirs
    ignored: tuple[str, ...] = ()  # patterns of stored tensors that are derived, not learned


LLAMA_TENSORS = {
    "embedding": Tensor("model.embed_tokens.weight"),
    "head": Tensor("lm_head.weight", True),
    "norm.scale": Tensor("model.norm.weight"),
    "layers.input_norm.scale": Tensor("model.layers.{i}.input_layernorm.weight"),
    "layers.mlp_norm.scale": Tensor("model.layers.{i}.post_attention_layernorm.weight"),
    **{
        f"layers.attention.{n}.kernel": Tensor(f"model.layers.{{i}}.self_attn.{n}.weight", True)
        for n in ("q_proj", "k_proj", "v_proj", "o_proj")
    },
    **{
        f"layers.attention.{n}.bias": Tensor(f"model.layers.{{i}}.self_attn.{n}.bias")
        for n in ("q_proj", "k_proj", "v_proj", "o_proj")
    },
    **{
        f"layers.mlp.{n}.kernel": Tensor(f"model.layers.{{i}}.mlp.{n}.weight", True)
        for n in ("gate_proj", "up_proj", "down_proj")
    },
    **{
        f"layers.mlp.{n}.bias": Tensor(f"model.layers.{{i}}.mlp.{n}.bias")
        for n in ("gate_proj", "up_proj", "down_proj")
    },
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_ROPE_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_positions",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
_ROPE_KINDS = ("default", "linear", "llama3")


def read_config(raw: Json) -> DecoderConfig:
    """Returns the config that a parsed config.json describes, with dtype float32.

    Raises:
      ValueError: on an unsupported model_type, or a switch that is not understood:
        an unknown switch is refused, never ignored.
    """
    family = find_family(raw)
    if raw.get("quantization_config"):
        raise ValueError(
            f"config.json: quantization_config={raw['quantization_config']} is not supported; "
            "use the unquantised weights of this model"
        )
    missing = [name for name in ("vocab_size",) if name not in raw]
    if missing:
        raise ValueError(f"config.json lacks {missing}; is it a language model's?")
    try:
        fields = family.config(raw)
    except KeyError as error:
        raise ValueError(f"config.json of a {raw['model_type']} lacks the field {error}") from None
    source = json.dumps(dict(raw), sort_keys=True)
    return DecoderConfig(
        model_type=raw["model_type"], vocab_size=raw["vocab_size"], source=source, **fields
    )


def find_family(raw: Json) -> Family:
    """Returns the row of the table that a config.json belongs to."""
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {kind!r} is not supported; supported are {sorted(FAMILIES)}; "
            "to add a family write its row in fedjax_post/hub/families.py"
        )
    return FAMILIES[kind]


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a model: the one it came from, or Llama's for one made here.

    Raises:
      ValueError: if the architecture was made here and Llama's config cannot say it.
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
    same = DecoderConfig(**{**vars(read_config(raw)), "source": "", "dtype": config.dtype})
    if same != config:
        changed = [name for name, value in vars(same).items() if value != vars(config)[name]]
        raise ValueError(
            f"only Llama's architecture can be written without a config.json; {changed} differ; "
            "make the config with read_config from a config.json of its family"
        )
    return raw


def _llama(raw: Json) -> dict[str, Any]:
    """Llama 1 to 3.x and all that copy it; Mistral's window is its own row."""
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
        "activation": _activation(raw.get("hidden_act", "silu")),
        "norm_eps": raw.get("rms_norm_eps", 1e-6),
        "tied_head": bool(raw.get("tie_word_embeddings", False)),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "rope": read_rope(raw),
    }


def read_rope(raw: Json) -> Rope:
    """Returns the rotary embedding of a config.json, in the old or the new spelling.

    Raises:
      ValueError: on a scaling that is not known.
    """
    stated = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in _ROPE_KINDS:
        raise ValueError(
            f"config.json: rope scaling {kind!r} is not supported; supported are {_ROPE_KINDS}"
        )
    theta: Any = stated.get("rope_theta", raw.get("rope_theta", 10000.0))
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE_FIELDS}
    unknown = sorted(set(stated) - known)
    if unknown:
        raise ValueError(f"config.json: rope scaling {kind!r} has unknown fields {unknown}")
    fields = {ours: stated[theirs] for theirs, ours in _ROPE_FIELDS.items() if theirs in stated}
    if kind in ("llama3",) and "original_positions" not in fields:
        raise ValueError(f"rope scaling {kind!r} needs original_max_position_embeddings")
    return (
        Rope(theta=float(theta), kind=kind, **fields) if kind != "default" else Rope(float(theta))
    )


def _activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"config.json: hidden_act {name!r} is not supported; supported are "
            f"{sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, LLAMA_TENSORS, (r".*rotary_emb\.inv_freq",)),
}
