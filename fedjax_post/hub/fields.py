"""Reads the fields of a config.json that several families share, and refuses unknown ones."""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Json = Mapping[str, Any]

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# A field with such a name may change the forward pass, so it must be read or refused
_SWITCHES = re.compile(
    r"attn|attention|rope|rotary|norm|expert|moe|softcap|window|quant|scal|clip|bias|multiplier"
    r"|residual|layer_types|tp$|mup"
)
# These fields do not: they concern only training, or do not change the result
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


class Kind(NamedTuple):
    """A condition on the value of a field."""

    condition: str  # the condition in words, for messages
    fits: Callable[[Any], bool]

    def or_null(self) -> "Kind":
        """Returns the kind that also allows null."""
        return Kind(f"{self.condition} or null", lambda value: value is None or self.fits(value))


def _whole(low: int, high: int) -> Kind:
    return Kind(
        f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high
    )


MOST_LAYERS = 4096  # ten times the largest published; layers cost names before a file is opened
COUNT = _whole(1, 2**31 - 1)
LAYERS = _whole(1, MOST_LAYERS)
INDEX = _whole(0, 2**31 - 1)
POSITIVE = Kind("a finite number above 0", lambda v: type(v) in (int, float) and 1e-30 < v < 1e30)
BASE = Kind("a finite number above 1", lambda v: type(v) in (int, float) and 1 < v < 1e30)
SHARE = Kind("a number above 0, at most 1", lambda v: type(v) in (int, float) and 0 < v <= 1)
FLAG = Kind("true or false", lambda v: type(v) is bool)
WORD = Kind("a word", lambda v: isinstance(v, str))
OBJECT = Kind("an object", lambda v: isinstance(v, dict))
WORDS = Kind("a list of words", lambda v: isinstance(v, list) and all(map(WORD.fits, v)))
FLAGS = Kind("a list of 0 and 1", lambda v: isinstance(v, list) and all(x in (0, 1) for x in v))
ANY = Kind("anything", lambda v: True)

# Every field that is read, and the values that transformers accepts for it
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), LAYERS),
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "n_embd"), COUNT),
    **dict.fromkeys(("num_attention_heads", "n_head", "max_position_embeddings"), COUNT),
    **dict.fromkeys(("n_positions", "no_rope_layer_interval"), COUNT),
    **dict.fromkeys(
        ("num_key_value_heads", "head_dim", "n_inner", "sliding_window"), COUNT.or_null()
    ),
    **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern"), COUNT.or_null()),
    "max_window_layers": INDEX,
    "original_max_position_embeddings": COUNT.or_null(),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), POSITIVE),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq"), BASE),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), POSITIVE.or_null()),
    **dict.fromkeys(("beta_fast", "beta_slow", "attention_factor"), POSITIVE.or_null()),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), POSITIVE.or_null()),
    "clip_qkv": POSITIVE.or_null(),
    "query_pre_attn_scalar": POSITIVE,
    "rotary_pct": SHARE,
    "partial_rotary_factor": SHARE.or_null(),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), FLAG),
    **dict.fromkeys(("tie_word_embeddings", "use_parallel_residual"), FLAG),
    **dict.fromkeys(("truncate", "use_bidirectional_attention"), FLAG.or_null()),
    **dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx"), FLAG),
    **dict.fromkeys(("reorder_and_upcast_attn", "add_cross_attention"), FLAG),
    **dict.fromkeys(("hidden_act", "activation_function", "model_type"), WORD),
    **dict.fromkeys(("hidden_activation", "rope_type", "type"), WORD.or_null()),
    "layer_types": WORDS.or_null(),
    "no_rope_layers": FLAGS.or_null(),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), OBJECT.or_null()),
    **dict.fromkeys(("full_attention", "sliding_attention"), OBJECT.or_null()),
    **dict.fromkeys(("bos_token_id", "pretraining_tp"), ANY),
}


def check_kind(name: str, value: Any) -> Any:
    """Returns the value of a field of config.json.

    Raises:
      ValueError: if transformers would not accept a value of this kind.
    """
    if not KINDS[name].fits(value):
        raise ValueError(
            f"config.json: {name} must be {KINDS[name].condition}, got {reprlib.repr(value)}"
        )
    return value


def check_length(name: str, values: Sequence[Any], layers: int) -> None:
    """Raises if a list does not have one entry for each layer.

    Args:
      name: the field of config.json.
      values: its entries.
      layers: number of layers.

    Raises:
      ValueError: with both numbers.
    """
    if len(values) != layers:
        raise ValueError(
            f"config.json: {name} has {len(values)} entries for num_hidden_layers={layers}; "
            "give one for each layer"
        )


class Reader(Mapping):
    """A config.json that checks each value that is read, and records which fields were read."""

    def __init__(self, raw: Json):
        self.raw = raw
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return check_kind(name, self.raw[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


def refuse_unread(reader: Reader) -> None:
    """Raises if a config sets a switch that the family's row has not read.

    Raises:
      ValueError: with the fields.
    """
    unread = {
        name: value
        for name, value in reader.raw.items()
        if name not in reader.seen and name not in _HARMLESS and _SWITCHES.search(name) and value
    }
    if unread:
        raise ValueError(
            f"config.json: {reprlib.repr(unread)} may change the model and is not supported for "
            f"model_type {reader.raw['model_type']!r}; this variant needs a separate row or a "
            "switch"
        )


def require(raw: Json, expected: Json) -> None:
    """Raises if fields differ from the only values that are supported."""
    for name, value in expected.items():
        found = raw.get(name)
        if found is not None and found != value:
            raise ValueError(f"config.json: {name}={found!r} is not supported; only {value!r} is")


def read_activation(name: str) -> str:
    """Returns our name of an activation function.

    Raises:
      ValueError: for a function that is not supported.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"config.json: hidden_act {name!r} is not supported; supported are "
            f"{sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def read_sliding(
    raw: Json, default: list[bool], *, window: int | None, listed: bool = True
) -> dict[str, Any]:
    """Returns the fields of sliding layers, from config.json if it lists them, or the default.

    Args:
      raw: the config.
      default: for each layer, whether it slides if `layer_types` is not given.
      window: tokens that a sliding layer sees; None for no sliding layers.
      listed: whether the family reads `layer_types`; if not, they must agree with the default.

    Raises:
      ValueError: for types that are unknown, or that contradict the window or the family.
    """
    types = raw.get("layer_types")
    known = ("full_attention", "sliding_attention")
    unknown = sorted(set(types or ()) - set(known))
    if unknown:
        raise ValueError(f"config.json: layer_types {unknown} are not supported; only {known} are")
    if types:
        check_length("layer_types", types, len(default))
    slides = [kind == known[1] for kind in types] if types else default
    if slides != default and not listed:
        raise ValueError(
            f"config.json: layer_types contradict sliding_window={window}, which in a "
            f"{raw['model_type']} applies to all layers; leave them out"
        )
    if not any(slides):
        return {}
    if window is None:
        raise ValueError(
            "config.json: layer_types has sliding layers, but sliding_window is not set "
            "or is disabled by use_sliding_window"
        )
    layers = tuple(i for i, slide in enumerate(slides) if slide)
    return {"sliding_window": window, "sliding_layers": layers}
