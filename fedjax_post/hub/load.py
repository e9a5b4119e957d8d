"""Reads a Hugging Face folder as a LanguageModel, and writes one."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.adapters.lora import merge_lora
from fedjax_post.hub import gguf
from fedjax_post.hub.documents import read_json, write_json
from fedjax_post.hub.families import Family, find_family, read_config, write_config
from fedjax_post.hub.files import find_folder
from fedjax_post.hub.resolve import rename_by_family, settle_head
from fedjax_post.hub.tensors import SINGLE, Entry, read_folder, remove_shards, write_file
from fedjax_post.hub.weights import ShardingFn, check_tensors, load_weights, stored_tensors
from fedjax_post.model.config import MIXED, DecoderConfig, dtype_name
from fedjax_post.model.quantize import check_quantization, dequantize_model
from fedjax_post.model.views import LanguageModel

PyTree = Any
DTYPES = ("float32", "bfloat16", "float16")


def load_config(name_or_path: str | Path, *, revision: str | None = None) -> DecoderConfig:
    """Returns the architecture of a model folder or hub name, without reading its weights.

    Args:
      name_or_path: as for `load_model`.
      revision: branch, tag or commit, for a hub name.

    Raises:
      FileNotFoundError: if the folder or its config.json does not exist.
      ValueError: if the architecture is not supported.

    Example:
      >>> config = load_config("builtin")
      >>> config.model_type, config.num_layers, config.hidden_size
      ('llama', 4, 128)
    """
    folder = find_folder(name_or_path, revision=revision)
    if gguf.is_gguf(folder):
        raw = gguf.config_json(gguf.read_gguf(folder))
        return _read_config(folder, raw)
    path = folder / "config.json"
    if not path.exists():
        adapter = folder / "adapter_config.json"
        if adapter.exists():
            base = read_json(adapter).get("base_model_name_or_path")
            raise FileNotFoundError(
                f"{folder} holds an adapter and no model; load its base, {base!r}, and then the "
                "adapter"
            )
        raise FileNotFoundError(f"{folder} has no config.json; is it a Hugging Face model folder?")
    return _read_config(folder, read_json(path))


def _read_config(where: Path, raw: dict[str, Any]) -> DecoderConfig:
    try:
        return read_config(raw)
    except RecursionError:
        raise ValueError(f"{where}: config.json is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def load_model(
    name_or_path: str | Path,
    *,
    dtype: Any = jnp.float32,
    revision: str | None = None,
    sharding_fn: ShardingFn | None = None,
    quantize: str = "none",
) -> LanguageModel:
    """Returns a published model, with its weights in `dtype` or its layers quantized.

    Args:
      name_or_path: "builtin", "smollm2", a folder with config.json and safetensors, a GGUF file,
        or a hub name.
      dtype: float32, bfloat16 or float16, for weights and matrix products; or "mixed", for
        bfloat16 matrices, with all else and all sums in float32.
      revision: branch, tag or commit, for a hub name.
      sharding_fn: `(dotted path, shape) -> jax.sharding.Sharding` of each weight, for
        example ("layers.mlp.up_proj.kernel", (num_layers, in, out)); None for one device.
        Codes have the paths "....up_proj.codes" and "....up_proj.scales", see `model/codes.py`.
      quantize: "none", "int8" or "nf4": as `quantize_model`, but layer by layer while reading,
        so that the host never holds the whole model in `dtype`.

    Raises:
      FileNotFoundError: if the folder, its config.json or its weights do not exist.
      ValueError: if the architecture is not supported, or the files are damaged or
        do not fit it.

    Example:
      >>> model = load_model("builtin-small")
      >>> model.config.vocab_size, num_parameters(model)
      (715, 119808)
    """
    dtype = _check_dtype(dtype, (*DTYPES, MIXED))
    folder = find_folder(name_or_path, revision=revision)
    coded = quantize != "none"
    if coded:
        check_quantization(quantize)
    config = dataclasses.replace(load_config(folder), dtype=dtype, remat=coded)
    family = find_family({"model_type": config.model_type})
    entries = _entries(folder, family)
    config, entries = settle_head(config, entries, family, dtype=config.matrix_dtype)
    check_tensors(entries, family, where=str(folder), config=config)
    variables = load_weights(
        entries, family, config=config, sharding_fn=sharding_fn, quantize=quantize
    )
    return LanguageModel(variables, config)


def load_embedding(name_or_path: str | Path) -> np.ndarray:
    """Returns the input embeddings of a published model, `[V, D]` float32, and reads only them.

    Args:
      name_or_path: as for `load_model`.

    Raises:
      FileNotFoundError, ValueError: as `load_model`.
    """
    folder = find_folder(name_or_path)
    family = find_family({"model_type": load_config(folder).model_type})
    entries = _entries(folder, family)
    names = [family.tensors[role].name for role in ("embedding", "head") if role in family.tensors]
    found = [entries[name] for name in names if name in entries]  # a tied head may stand for both
    if not found:
        raise ValueError(f"{folder}: no tensor {names[0]}; does config.json belong to the weights?")
    return found[0].read(np.float32)


def _entries(folder: Path, family: Family) -> dict[str, Entry]:
    """Returns the tensors of a folder or GGUF file by the family's names, not read yet."""
    if gguf.is_gguf(folder):
        return gguf.family_entries(gguf.read_gguf(folder))
    return rename_by_family(read_folder(folder), family)


def save_model(
    directory: str | Path,
    model: LanguageModel,
    *,
    params: PyTree = None,
    dtype: Any = None,
    run: str = "",
) -> None:
    """Writes a model as a Hugging Face folder: config.json and model.safetensors.

    `load_model` then reads this model, whatever was in the folder before. Each of the two files
    is replaced as a whole.

    Args:
      directory: created if it does not exist; an index and its shards are removed.
      model: the model to write; a residual is added to the weights.
      params: adapter or trained weights to merge into the model first.
      dtype: float32, bfloat16 or float16; None for that of the model's matrices.
      run: description of the run that made the model, kept in the file's metadata.

    Raises:
      ValueError: if the dtype is none of these, the architecture has no config.json, or
        there is a prompt, which cannot be stored as weights.
    """
    config = model.config
    dtype = _check_dtype(config.matrix_dtype if dtype is None else dtype, DTYPES)
    # a file of another dtype than the model's is rounded once, when it is written
    sum_dtype = None if dtype == config.matrix_dtype else jnp.float32
    merged = merge_lora(model, params or {}, dtype=sum_dtype)
    if merged.prompt_length({}):
        raise ValueError(
            "a model folder has no place for a prompt; write it with save_prompt beside the base"
        )
    raw = write_config(config)
    raw.pop("torch_dtype", None)
    raw["dtype"] = dtype
    family = find_family(raw)
    weights = merged.variables["params"]
    tensors = stored_tensors(weights, family, config=config, dtype=dtype)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", raw)
    write_file(folder / SINGLE, tensors, run=run)
    remove_shards(folder)


def num_parameters(model: LanguageModel) -> int:
    """Returns the number of base weights; quantized weights are counted as unquantized ones."""
    weights = jax.eval_shape(dequantize_model, model).variables["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))


def _check_dtype(dtype: Any, known: tuple[str, ...]) -> str:
    """Returns the name of a known dtype."""
    try:
        name = dtype_name(dtype)
    except TypeError:
        name = str(dtype)
    if name not in known:
        raise ValueError(f"dtype={name} is not supported; use one of {known}")
    return name
