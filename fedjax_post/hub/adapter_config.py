"""Reads the adapter_config.json of a PEFT folder; unsupported settings are refused by name.

A field that is not listed here must be empty, so that a variant which is added to peft later
is refused, rather than loaded as plain LoRA.
"""

import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedjax_post.core.patterns import is_bounded
from fedjax_post.hub.documents import read_json

Json = Mapping[str, Any]
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BIN = "adapter_model.bin"

# Initialisations that leave the base weights unchanged; the others change them
_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# Fields that do not change the meaning of the factors, or only if another field is set
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "eva_config", "fan_in_fan_out", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "loftq_config", "megatron_core", "peft_type"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
    *("target_parameters", "task_type", "exclude_modules"),
}
_REMEDY = (
    "only plain LoRA is; if peft can merge it into its base (merge_and_unload), do so and load "
    "the result as a model"
)


def is_rank(value: Any) -> bool:
    """Returns whether a JSON value can be a rank."""
    return type(value) is int and 1 <= value < 2**31


def is_alpha(value: Any) -> bool:
    """Returns whether a JSON value can be the numerator of a scale."""
    return type(value) in (int, float) and abs(value) < 1e30


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Returns the adapter_config.json of a folder that holds plain LoRA.

    Raises:
      FileNotFoundError: if the folder has no adapter, or one in another format.
      ValueError: if it is damaged, or has a setting that is not supported.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            remedy = "is it a PEFT adapter folder?"
            if name == WEIGHTS and (folder / BIN).exists():
                remedy = (
                    f"{BIN} is a pickle, which is not read; load it with peft and write it again "
                    "with save_pretrained"
                )
            raise FileNotFoundError(f"{folder} has no {name}; {remedy}")
    path = folder / CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {reprlib.repr(config.get('peft_type'))} is not LORA")
    for name, value in config.items():
        known = _ALLOWED.get(name)
        fits = known(value) if known else name in _HARMLESS or not value
        if not fits:
            raise ValueError(f"{path}: {name}={reprlib.repr(value)} is not supported; {_REMEDY}")
    if "lora_alpha" not in config or "r" not in config:
        raise ValueError(f"{path} lacks r or lora_alpha; check that it is complete")
    return config


def match_pattern(patterns: Json | None, module: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the end of a module's name, as in peft.

    Args:
      patterns: regular expression -> value, as in `rank_pattern` and `alpha_pattern`.
      module: dotted name of a layer.
      default: the result if none matches.
    """
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _patterns(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return not value or (
            isinstance(value, dict)
            and all(map(is_bounded, value))
            and all(map(fits, value.values()))
        )

    return check


_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "r": is_rank,
    "lora_alpha": is_alpha,
    "lora_dropout": lambda value: type(value) in (int, float) and 0 <= value < 1,
    "use_rslora": lambda value: type(value) is bool,
    "bias": lambda value: value == "none",
    "init_lora_weights": lambda value: (
        value is None or (type(value) in (bool, str) and value in _INITS)
    ),
    "rank_pattern": _patterns(is_rank),
    "alpha_pattern": _patterns(is_alpha),
}
