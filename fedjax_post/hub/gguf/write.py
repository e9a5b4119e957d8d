"""Writes adapters and merged models as GGUF files, for llama.cpp and Ollama.

Names and layouts are those of llama.cpp's `convert_lora_to_gguf.py` and `convert_hf_to_gguf.py`.
This module reverses the changes that `architectures` makes.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.adapters.lora import merge_lora
from fedjax_post.hub.families import find_family
from fedjax_post.hub.gguf.architectures import (
    ARCHITECTURES,
    ENDS,
    FREQUENCIES,
    Architecture,
    row_order,
)
from fedjax_post.hub.gguf.container import Gguf, import_gguf, read_gguf
from fedjax_post.hub.load import load_model
from fedjax_post.hub.peft import PREFIX, adapter_tensors
from fedjax_post.hub.tensors import shorten
from fedjax_post.hub.weights import expected_tensors, stored_tensors
from fedjax_post.model.quantize import dequantize_model
from fedjax_post.model.views import LanguageModel

PyTree = Any
# blocks of matrices -> what `general.file_type` calls a file of them
KINDS = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
# of the blocks of the base, which the merged file does not have
_OF_BLOCKS = ("general.file_type", "general.quantized_by", "general.quantization_version")


def save_gguf_adapter(path: str | Path, model: LanguageModel, params: PyTree) -> None:
    """Writes a LoRA adapter as a GGUF adapter file, float32.

    The format has one alpha. Where layers have other ones, their B is scaled instead.

    Args:
      path: of the file; replaced as a whole if it exists.
      model: the adapted model; its `lora_scale` gives the alphas.
      params: `{"lora": tree}`.

    Raises:
      ImportError: without the library `gguf`.
      ValueError: if `params` holds no adapter, the model holds a residual or a prompt, which
        the file would lack, or the architecture has no GGUF files here.
    """
    gguf = import_gguf()
    name, architecture = _architecture_of(model)
    tensors, ranks, alphas = adapter_tensors(model, params)
    alpha = max(set(alphas.values()), key=list(alphas.values()).count)
    writer = _writer(gguf, path, name)
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module in ranks:
        ours = f"{module}.weight"
        a, b = (tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
        b = b * np.float32(alphas[module] / alpha)
        stored = _stored_name(ours, architecture)
        writer.add_tensor(f"{stored}.lora_a", a)
        rows = _to_stored(stored, b, architecture, model)
        writer.add_tensor(f"{stored}.lora_b", np.ascontiguousarray(rows))
    _finish(writer, path)


def save_gguf_model(
    path: str | Path,
    base: str | Path,
    model: LanguageModel,
    params: PyTree = None,
    *,
    kind: str = "F16",
) -> None:
    """Writes a model with its adapter merged, with the metadata and tokenizer of its base.

    What the base's metadata say of its own blocks is replaced by what is true of the new ones.
    The sum is float32 whatever the model's dtype is: weights that training left as they were
    are those of `base`, not the model's roundings of them.

    Args:
      path: of the file; replaced as a whole if it exists.
      base: the GGUF file that the model was read from.
      model: the model, of any dtype. Weights that were read as codes of int8 or nf4 are written
        as the codes have them, since the adapter was trained on these.
      params: an adapter or trained weights that are merged into it first.
      kind: blocks of matrices, one of `KINDS`; vectors are float32.

    Raises:
      ImportError: without the library `gguf`.
      ValueError: for another kind, a base whose architecture or tensors are not the model's, or a
        prompt, which cannot be stored as weights.
    """
    gguf = import_gguf()
    if kind not in KINDS:
        raise ValueError(f"kind={kind} must be one of {', '.join(KINDS)}")
    if model.prompt_length(params or {}):
        raise ValueError(
            "a GGUF file has no place for a prompt; leave it out of `params` and of the model, and "
            "write it with save_prompt beside the file"
        )
    name, architecture = _architecture_of(model)
    header = read_gguf(Path(base))
    _check_base(header, name, architecture, model)
    reader = gguf.GGUFReader(header.path)
    writer = _writer(gguf, path, name)
    for field in reader.fields.values():
        if not _is_dropped(field.name):
            writer.add_key_value(field.name, *_value(field))
    writer.add_file_type(gguf.LlamaFileType[KINDS[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    block = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        if tensor.name == FREQUENCIES:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    model = merge_lora(_in_float32(model, header.path), params or {}, dtype=jnp.float32)
    for stored, array in _stored_model(model, architecture):
        if array.ndim == 1 or array.shape[-1] % gguf.GGML_QUANT_SIZES[block][0]:
            writer.add_tensor(stored, np.ascontiguousarray(array))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(array, block), raw_dtype=block)
    _finish(writer, path)


def _is_dropped(field: str) -> bool:
    """Whether a field of the base is not of the merged file, or the writer adds it."""
    begins = ("GGUF.", "quantize.")  # the reader's own, and how weights were quantised
    return field in (*_OF_BLOCKS, "general.architecture") or field.startswith(begins)


def _check_base(base: Gguf, name: str, architecture: Architecture, model: LanguageModel) -> None:
    """Raises if the base's metadata cannot be those of the model."""
    remedy = "give the GGUF file that the model was read from"
    if (found := base.fields.get("general.architecture")) != name:
        raise ValueError(f"base={base.path} is a {found} and the model a {name}; {remedy}")
    family = find_family({"model_type": model.config.model_type})
    expected = expected_tensors(family, model.config)
    ours = {_stored_name(tensor, architecture): expected[tensor] for tensor in expected}
    theirs = {each: stored.shape for each, stored in base.tensors.items() if each != FREQUENCIES}
    if unlike := sorted(each for each in ours | theirs if ours.get(each) != theirs.get(each)):
        shape = lambda tensors, each: tensors.get(each, "missing")
        listed = (f"{n} is {shape(theirs, n)} and {shape(ours, n)}" for n in unlike)
        raise ValueError(
            f"base={base.path} and the model differ in {len(unlike)} tensors: {shorten(listed)}; "
            f"{remedy}"
        )


def _in_float32(model: LanguageModel, base: Path) -> LanguageModel:
    """Returns the model with the weights of its base's file, where its own are these, rounded."""
    model = dequantize_model(model)
    weights = model.variables["params"]
    if all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(weights)):
        return model
    widen = lambda own, exact: jnp.where((exact.astype(own.dtype) == own).all(), exact, own)
    wide = jax.tree.map(widen, weights, load_model(base).variables["params"])
    return dataclasses.replace(model, variables={**model.variables, "params": wide})


def _stored_model(
    model: LanguageModel, architecture: Architecture
) -> Iterator[tuple[str, np.ndarray]]:
    family = find_family({"model_type": model.config.model_type})
    weights = model.variables["params"]
    found = stored_tensors(weights, family, config=model.config, dtype=np.dtype("float32"))
    for ours, array in found.items():
        stored = _stored_name(ours, architecture)
        array = _to_stored(stored, array, architecture, model)
        is_norm = stored.removesuffix(".weight").endswith("norm")
        yield stored, array + 1 if architecture.norm_plus_one and is_norm else array


def _architecture_of(model: LanguageModel) -> tuple[str, Architecture]:
    kind = {"mistral": "llama"}.get(model.config.model_type, model.config.model_type)
    for name, architecture in ARCHITECTURES.items():
        if architecture.model_type == kind:
            return name, architecture
    known = ", ".join(sorted(row.model_type for row in ARCHITECTURES.values()))
    raise ValueError(
        f"a {kind} cannot be written as GGUF; supported are {known}; write Hugging Face files and "
        "convert them with llama.cpp"
    )


def _stored_name(ours: str, architecture: Architecture) -> str:
    """Returns a tensor's name in a GGUF file, from Hugging Face's."""
    name, _, suffix = ours.rpartition(".")
    if not name.startswith("model.layers."):
        return f"{({theirs: mine for mine, theirs in ENDS.items()})[name]}.{suffix}"
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    inverse = {theirs: mine for mine, theirs in architecture.names.items()}
    return f"blk.{layer}.{inverse[part]}.{suffix}"


def _to_stored(
    stored: str, rows: np.ndarray, architecture: Architecture, model: LanguageModel
) -> np.ndarray:
    """Returns rows in the order of a GGUF file."""
    heads = {"attn_q": model.config.num_heads, "attn_k": model.config.num_kv_heads}
    part = stored.split(".")[-2]
    if not architecture.permuted or part not in heads:
        return rows
    placed = np.empty_like(rows)
    placed[row_order(len(rows), heads[part])] = rows
    return placed


def _value(field: Any) -> tuple:
    """Returns a field's value and its types, as the writer takes them."""
    kind, *inner = field.types
    return field.contents(), kind, *(inner[-1:] or [None])


def _writer(gguf: Any, path: str | Path, architecture: str) -> Any:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return gguf.GGUFWriter(f"{path}.partial", architecture)


def _finish(writer: Any, path: str | Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(f"{path}.partial", path)
