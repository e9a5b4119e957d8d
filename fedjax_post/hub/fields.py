"""The fields of a config.json that several families share, and the refusal of those unknown."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fedjax_post.model.config import Rope

Json = Mapping[str, Any]

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
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
_ROPE_KINDS = ("default", "linear", "llama3", "yarn")
# A field with such a name may change the forward pass, so it must be understood
_SWITCHES = re.compile(
    r"attn|attention|rope|rotary|norm|expert|moe|softcap|window|quant|scal|clip|bias|multiplier"
    r"|residual|layer_types|tp$|mup"
)
# These do not change it: training only, or where the answer is the same
_HARMLESS = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_sliding_window_pattern",
    "attention_dropout",
    "attn_implementation",
    "attn_pdrop",
    "max_window_layers",
    "no_rope_layer_interval",
    "no_rope_scaling",
    "sliding_window_pattern",
    "use_sliding_window",
}


class Reader(Mapping):
    """A config.json that remembers which of its fields were read."""

    def __init__(self, raw: Json):
        self.raw = raw
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return self.raw[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


def refuse_unread(reader: Reader) -> None:
    """Refuses a config that sets a switch which no row of the table has read.

    Raises:
      ValueError: naming the fields.
    """
    unread = {
        name: value
        for name, value in reader.raw.items()
        if name not in reader.seen and name not in _HARMLESS and _SWITCHES.search(name) and value
    }
    if unread:
        raise ValueError(
            f"config.json: {unread} may change the model and is not supported for model_type "
            f"{reader.raw['model_type']!r}; this variant needs a row or a switch of its own"
        )


def require(raw: Json, expected: Json) -> None:
    """Refuses a config whose fields differ from the only values that are supported."""
    for name, value in expected.items():
        found = raw.get(name)
        if found is not None and found != value:
            raise ValueError(f"config.json: {name}={found!r} is not supported; only {value!r} is")


def read_activation(name: str) -> str:
    """Returns our name of an activation function."""
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"config.json: hidden_act {name!r} is not supported; supported are "
            f"{sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def read_sliding(raw: Json, default: list[bool]) -> dict[str, Any]:
    """Returns the fields of sliding layers: those that config.json lists, else the default."""
    types = raw.get("layer_types")
    known = ("full_attention", "sliding_attention")
    unknown = sorted(set(types or ()) - set(known))
    if unknown:
        raise ValueError(f"config.json: layer_types {unknown} are not supported; only {known} are")
    slides = [kind == known[1] for kind in types] if types else default
    if not any(slides):
        return {}
    if not raw.get("sliding_window"):
        raise ValueError("config.json: there are sliding layers but sliding_window is not set")
    layers = tuple(i for i, slide in enumerate(slides) if slide)
    return {"sliding_window": raw["sliding_window"], "sliding_layers": layers}


def read_ropes(
    raw: Json, *, theta: float = 10000.0, fraction: float = 1.0, local_theta: float | None = None
) -> dict[str, Any]:
    """Returns the rotary embeddings of global and sliding layers, in the old or new spelling.

    Args:
      raw: the config.
      theta: base where it says none.
      fraction: share of a head that is rotated where it says none.
      local_theta: base of sliding layers where they have one of their own.

    Raises:
      ValueError: on a scaling that is not known.
    """
    old = {"rope_theta": raw.get("rope_theta", theta), "partial_rotary_factor": fraction}
    old["partial_rotary_factor"] = raw.get("partial_rotary_factor") or fraction
    new, scaling = raw.get("rope_parameters"), raw.get("rope_scaling")
    stated = new or scaling or {}
    local_theta = raw.get("rope_local_base_freq", local_theta)
    if "full_attention" in stated:
        parts = {kind: {**old, **stated[kind]} for kind in ("full_attention", "sliding_attention")}
        return {
            "rope": _read_rope(parts["full_attention"], raw),
            "sliding_rope": _read_rope(parts["sliding_attention"], raw),
        }
    ropes = {"rope": _read_rope({**old, **stated}, raw)}
    if local_theta is not None:
        ropes["sliding_rope"] = _read_rope({**old, "rope_theta": local_theta}, raw)
    return ropes


def _read_rope(stated: Json, raw: Json) -> Rope:
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in _ROPE_KINDS:
        raise ValueError(
            f"config.json: rope scaling {kind!r} is not supported; supported are {_ROPE_KINDS}"
        )
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE_FIELDS}
    unknown = sorted(name for name in set(stated) - known if stated[name] is not None)
    if unknown:
        raise ValueError(f"config.json: rope scaling {kind!r} has unknown fields {unknown}")
    theta, fraction = float(stated["rope_theta"]), float(stated["partial_rotary_factor"])
    if kind == "default":
        return Rope(theta, fraction)
    fields = {
        ours: stated[theirs]
        for theirs, ours in _ROPE_FIELDS.items()
        if stated.get(theirs) is not None
    }
    if kind != "linear" and "original_positions" not in fields:
        fields["original_positions"] = raw["max_position_embeddings"]
    return Rope(theta, fraction, kind, **fields)
