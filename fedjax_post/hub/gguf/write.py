"""Writes adapters and merged models as GGUF files, for llama.cpp and Ollama.

Names and layouts are those of llama.cpp's `convert_lora_to_gguf.py` and `convert_hf_to_gguf.py`.
This module reverses the changes that `architectures` makes.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from fedjax_post.hub.gguf.container import import_gguf, read_gguf
from fedjax_post.hub.peft import PREFIX, adapter_tensors
from fedjax_post.hub.weights import stored_tensors
from fedjax_post.model.views import LanguageModel

PyTree = Any
KINDS = ("F32", "F16", "BF16", "Q8_0")


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

    Args:
      path: of the file; replaced as a whole if it exists.
      base: the GGUF file that the model was read from.
      model: the model.
      params: an adapter or trained weights that are merged into it first.
      kind: blocks of matrices, one of `KINDS`; vectors are float32.

    Raises:
      ImportError: without the library `gguf`.
      ValueError: for another kind, a base of another architecture, or a prompt, which cannot be
        stored as weights.
    """
    gguf = import_gguf()
    if kind not in KINDS:
        raise ValueError(f"kind={kind} must be one of {', '.join(KINDS)}")
    if model.prompt_length(params or {}):
        raise ValueError(
            "a GGUF file has no place for a prompt; leave it out of `params` and of the model, and "
            "write it with save_prompt beside the file"
        )
    base = read_gguf(Path(base)).path  # its header is sound
    name, architecture = _architecture_of(model)
    reader = gguf.GGUFReader(base)
    if (found := reader.fields["general.architecture"].contents()) != name:
        raise ValueError(f"base={base} is a {found} and the model a {name}")
    writer = _writer(gguf, path, name)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, *_value(field))
    block = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        if tensor.name == FREQUENCIES:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    for stored, array in _stored_model(model, params, architecture):
        if array.ndim == 1 or array.shape[-1] % gguf.GGML_QUANT_SIZES[block][0]:
            writer.add_tensor(stored, np.ascontiguousarray(array))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(array, block), raw_dtype=block)
    _finish(writer, path)


def _stored_model(
    model: LanguageModel, params: PyTree, architecture: Architecture
) -> Iterator[tuple[str, np.ndarray]]:
    merged = merge_lora(model, params or {})
    family = find_family({"model_type": merged.config.model_type})
    weights = merged.variables["params"]
    found = stored_tensors(weights, family, config=merged.config, dtype=np.dtype("float32"))
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
