"""Reads rotary embeddings from a config.json, in the old or the new spelling."""

from typing import Any

from fedjax_post.hub.fields import Json, check_kind
from fedjax_post.model.config import DecoderConfig, Rope

_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_positions",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
_KNOWN = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *_FIELDS)
_KINDS = ("default", "linear", "llama3", "yarn")
_BY_LAYER = ("full_attention", "sliding_attention")


def read_rope(
    raw: Json,
    *,
    theta: float = 10000.0,
    theta_name: str = "rope_theta",
    fraction: float | None = None,
    by_layer: str = "",
    kinds: tuple[str, ...] = _KINDS,
) -> Rope:
    """Returns the rotary embedding that transformers builds from a config.

    Args:
      raw: the config.
      theta: default base, if the config has none.
      theta_name: the field outside `rope_parameters` that holds the base.
      fraction: default share of a head that is rotated; None for a family that rotates whole
        heads and does not read `partial_rotary_factor`.
      by_layer: the kind of layer, for a family whose `rope_parameters` are given by kind of layer.
      kinds: the scalings that the family supports.

    Raises:
      ValueError: for an unknown scaling, and for two spellings that contradict each other.
    """
    base = {"rope_theta": raw.get(theta_name, theta)}
    if theta_name != "rope_theta" and not by_layer:
        _refuse_other(raw, "rope_theta", theta_name, base["rope_theta"])
    new, old = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if by_layer:
        new = _of_layer(new, by_layer)
        stated = {**new, **old} if by_layer == _BY_LAYER[0] else new
        return _read({**base, **stated}, raw, fraction, kinds)
    found = [_read({**base, **stated}, raw, fraction, kinds) for stated in (old, new) if stated]
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError(
            f"config.json: rope_scaling={old} and rope_parameters={new} contradict each other; "
            "keep the right one"
        )
    return found[0] if found else _read(base, raw, fraction, kinds)


def check_rotation(config: DecoderConfig) -> DecoderConfig:
    """Returns the config, after a check that the rotated part of a head consists of pairs.

    Raises:
      ValueError: with head_dim.
    """
    for rope in (config.rope, config.sliding_rope):
        if rope is None:
            continue
        rotated = int(config.head_dim * rope.fraction)
        if not rotated or (rotated + 1) // 2 * 2 > config.head_dim:
            raise ValueError(
                f"head_dim={config.head_dim}, of which {rope.fraction:g} is rotated, holds no "
                "pairs to rotate; it must be even"
            )
    return config


def _of_layer(stated: Json, kind: str) -> Json:
    """Returns the parameters of one kind of layer."""
    flat = sorted(set(stated) - set(_BY_LAYER))
    if flat:
        raise ValueError(
            f"config.json: rope_parameters has {flat}, but this family has them by kind of layer; "
            f"put them under {_BY_LAYER[0]!r} or {_BY_LAYER[1]!r}"
        )
    return check_kind(kind, stated.get(kind)) or {}


def _read(stated: Json, raw: Json, fraction: float | None, kinds: tuple[str, ...]) -> Rope:
    kind = stated.get("rope_type") or stated.get("type") or "default"
    if kind not in kinds:
        raise ValueError(
            f"config.json: rope scaling {kind!r} is not supported; supported are {kinds}"
        )
    unknown = sorted(name for name in set(stated) - set(_KNOWN) if stated[name] is not None)
    if unknown:
        raise ValueError(f"config.json: rope scaling {kind!r} has unknown fields {unknown}")
    for name, value in stated.items():
        if name in _KNOWN:
            check_kind(name, value)
    rotated = _fraction(stated, raw, fraction, kind)
    theta = float(stated["rope_theta"])
    if kind == "default":
        return Rope(theta, rotated)
    fields: dict[str, Any] = {
        ours: stated[theirs] for theirs, ours in _FIELDS.items() if stated.get(theirs) is not None
    }
    if kind != "linear" and "original_positions" not in fields:
        fields["original_positions"] = raw["max_position_embeddings"]
    rope = Rope(theta, rotated, kind, **fields)
    if rope.high_freq_factor <= rope.low_freq_factor or rope.beta_fast <= rope.beta_slow:
        raise ValueError(
            f"config.json: rope scaling {kind!r} needs high_freq_factor above low_freq_factor "
            "and beta_fast above beta_slow"
        )
    return rope


def _fraction(stated: Json, raw: Json, fraction: float | None, kind: str) -> float:
    """Returns the share of a head that is rotated, as the family's code determines it."""
    if fraction is not None:
        own = stated.get("partial_rotary_factor") or fraction
        _refuse_other(raw, "partial_rotary_factor", "the share of the rope", own)
        return float(own)
    stated_share = stated.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    if kind != "default" and stated_share != 1:
        raise ValueError(
            f"config.json: partial_rotary_factor={stated_share} with rope scaling {kind!r} is not "
            f"supported for model_type {raw['model_type']!r}, which rotates whole heads"
        )
    return 1.0


def _refuse_other(raw: Json, name: str, other: str, value: float) -> None:
    """Raises if a field that the family does not read contradicts the one that it reads."""
    stated = raw.get(name)
    if stated is not None and stated != value:
        raise ValueError(
            f"config.json: {name}={stated} contradicts {other}={value}, which is what a "
            f"{raw['model_type']} reads; leave one of them out"
        )
