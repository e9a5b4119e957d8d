"""Decides which tensor of a model folder belongs to which name, and which head is used."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedjax_post.hub.families import Family
from fedjax_post.hub.names import Tensor
from fedjax_post.hub.tensors import Entry
from fedjax_post.model.config import DecoderConfig

# What other programs put before names, or between their parts: peft, torch.compile, DDP
_WRAPPERS = re.compile(r"^(?:(?:base_model\.model|module)\.)+|(?<![^.])_orig_mod\.")
# Buffers that follow from the config: rotary frequencies and causal masks
_DERIVED = re.compile(r"(?:.*\.)?(?:rotary_emb\.\w+|(?:attn|attention)\.(?:bias|masked_bias))")


def family_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Returns a tensor's name as its family publishes it, without prefixes of wrappers.

    Args:
      name: as stored.
      tensors: the names of the family.
    """
    name = _WRAPPERS.sub("", name)
    prefix = tensors["embedding"].name.partition(".")[0] + "."
    outside = {tensor.name for tensor in tensors.values()}
    return name if name.startswith(prefix) or name in outside else prefix + name


def is_derived(name: str) -> bool:
    """Returns whether a stored tensor contains nothing learned."""
    return _DERIVED.fullmatch(name) is not None


def rename_by_family(entries: Mapping[str, Entry], family: Family) -> dict[str, Entry]:
    """Returns the tensors under their family's names, without those that contain nothing learned.

    Of a file that holds more than a text model, only the text model is returned.

    Raises:
      ValueError: if two tensors have the same name.
    """
    found: dict[str, Entry] = {}
    for stored in _text_names(entries, family.inside):
        name = family_name(stored.replace(family.inside, "", 1), family.tensors)
        if is_derived(name):
            continue
        if name in found:
            raise ValueError(
                f"{entries[stored].where} and {found[name].where} are both {name}; "
                "keep the right one"
            )
        found[name] = entries[stored]
    return found


def _text_names(names: Iterable[str], inside: str) -> list[str]:
    """Returns the names below `inside`, if there are any, and those of a head, which is outside."""
    below = [name for name in names if inside in name.partition("layers.")[0]]
    if not inside or not below:
        return list(names)
    return [name for name in names if name in below or name.endswith("lm_head.weight")]


def settle_head(
    config: DecoderConfig, entries: dict[str, Entry], family: Family, *, dtype: Any
) -> tuple[DecoderConfig, dict[str, Entry]]:
    """Returns the config and tensors of a model whose config.json ties its head.

    As in transformers 5: a stored head that equals the embedding is left out; one that
    differs is used as the head; if only one of the two is stored, it is used as both.

    Args:
      config: as read.
      entries: by the family's names.
      family: their family.
      dtype: the dtype in which the two are compared.
    """
    if not config.tied_head or "head" not in family.tensors:
        return config, entries
    head, embedding = (family.tensors[name].name for name in ("head", "embedding"))
    if head not in entries:
        return config, entries
    rest = {name: entry for name, entry in entries.items() if name != head}
    if embedding not in entries:
        return config, {**rest, embedding: entries[head]}
    if _are_equal(entries[head], entries[embedding], dtype):
        return config, rest
    source = config.source and json.dumps(
        {**json.loads(config.source), "tie_word_embeddings": False}, sort_keys=True
    )
    return dataclasses.replace(config, tied_head=False, source=source), entries


def _are_equal(one: Entry, other: Entry, dtype: Any) -> bool:
    pairs = zip(one.strips(dtype), other.strips(dtype), strict=True)
    return one.shape == other.shape and all(np.array_equal(a, b) for (_, a), (_, b) in pairs)
