"""Reads and writes adapters as folders in the format of `peft`."""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_post.adapters.lora import adapted_layers, linear_layers, on_layers, with_scale
from fedjax_post.hub.adapter_config import CONFIG, WEIGHTS, match_pattern, read_adapter_config
from fedjax_post.hub.documents import write_json
from fedjax_post.hub.families import find_family
from fedjax_post.hub.names import Tensor
from fedjax_post.hub.resolve import family_name
from fedjax_post.hub.tensors import read_file, shorten, write_file
from fedjax_post.model.views import LanguageModel

PyTree = Any
PREFIX = "base_model.model."


def save_adapter(
    directory: str | Path,
    model: LanguageModel,
    params: PyTree,
    *,
    base_name: str = "",
    run: str = "",
) -> None:
    """Writes an adapter as a PEFT folder.

    Components with scale 0 are left out, and the others are written with a rank and
    alpha that give the same product.

    Args:
      directory: created if it does not exist; existing files are overwritten.
      model: the adapted model; its `lora_scale` determines the alphas.
      params: `{"lora": tree}`.
      base_name: hub name or path of the base, for `base_model_name_or_path`.
      run: description of the run that made the adapter, kept in the file's metadata.

    Raises:
      ValueError: if `params` holds no adapter, the model holds a residual or a prompt, which
        the folder would lack, or the scales of a layer's nonzero components differ, which PEFT
        cannot express.

    Example:
      >>> import jax, tempfile
      >>> from fedjax_post.adapters.lora import add_lora
      >>> from fedjax_post.testing.models import tiny_model
      >>> base = tiny_model()
      >>> model, params = add_lora(base, jax.random.key(0), rank=2, alpha=4)
      >>> folder = tempfile.mkdtemp()
      >>> save_adapter(folder, model, params, base_name="tiny")
      >>> sorted(path.name for path in Path(folder).iterdir())
      ['adapter_config.json', 'adapter_model.safetensors']
      >>> _, loaded = load_adapter(folder, base)
      >>> all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded, params)))
      True
    """
    tensors, ranks, alphas = adapter_tensors(model, params)
    config = _write_config(model, ranks, alphas=alphas, base_name=base_name)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    write_file(folder / WEIGHTS, tensors, run=run)


def adapter_tensors(
    model: LanguageModel, params: PyTree
) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, float]]:
    """Returns an adapter's matrices as `peft` names them, and each module's rank and alpha.

    Args:
      model: the adapted model; its `lora_scale` gives the alphas.
      params: `{"lora": tree}`.

    Raises:
      ValueError: as `save_adapter`.
    """
    if set(params) != {"lora"}:
        raise ValueError(
            f"a file of an adapter holds an adapter, got the collections {sorted(params)}; "
            "write a merged model with save_model instead"
        )
    _check_base_is_unchanged(model)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, stored in _stored_layers(model).items():
        factors, scales = _get(params["lora"], path), _get(model.variables["lora_scale"], path)
        if factors is None or scales is None:
            continue
        a, b = np.asarray(factors["a"], np.float32), np.asarray(factors["b"], np.float32)
        for i, scale in enumerate(np.asarray(scales["scale"], np.float32)):
            module = stored.name.format(i=adapted_layers(model)[i]).removesuffix(".weight")
            live = np.flatnonzero(scale)
            if live.size == 0:
                continue
            if not np.allclose(scale[live], scale[live[0]]):
                raise ValueError(f"{module}: PEFT has one scale per layer, got {scale[live]}")
            tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a[i][:, live].T)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b[i][live].T)
            ranks[module] = int(live.size)
            alphas[module] = float(scale[live[0]]) * live.size
    if not tensors:
        raise ValueError("the adapter is empty: no layer has factors and a scale that is not 0")
    return tensors, ranks, alphas


def _check_base_is_unchanged(model: LanguageModel) -> None:
    """Raises if the model is more than its base and factors, which are all that is written."""
    if "residual" in model.variables:
        raise ValueError(
            "a file of an adapter has no place for what was added to the base (the collection "
            "residual); write a merged model with save_model or save_gguf_model instead"
        )
    if model.prompt_length({}):
        raise ValueError(
            "a file of an adapter has no place for the prompt that the model holds; write it with "
            "save_prompt, and the adapter with a model without it"
        )


def load_adapter(directory: str | Path, model: LanguageModel) -> tuple[LanguageModel, PyTree]:
    """Returns the model prepared for the adapter of a PEFT folder, and the adapter.

    Layers of smaller rank are padded with components of scale 0. Layers before the
    first and after the last layer that the folder adapts get no factors.

    Args:
      directory: a folder that `peft` or `save_adapter` wrote.
      model: the base model; a `lora_scale` that it has is replaced.

    Returns:
      The model with `lora_scale`, and `{"lora": tree}`, float32.

    Raises:
      FileNotFoundError: if one of the two files is missing.
      ValueError: if the adapter is not LoRA, uses an unsupported variant, is damaged,
        or does not fit the model.
    """
    folder = Path(directory)
    config = read_adapter_config(folder)
    found = read_factors(folder / WEIGHTS, model)
    try:
        return _load(found, model, config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _load(
    found: dict[str, np.ndarray], model: LanguageModel, config: dict[str, Any]
) -> tuple[LanguageModel, PyTree]:
    factors: PyTree = {}
    scales: PyTree = {}
    shapes = linear_layers(model)
    max_rank = max((v.shape[0] for n, v in found.items() if ".lora_A." in n), default=0)
    model = on_layers(model, *_find_range(model, found))
    for path, stored in _stored_layers(model).items():
        modules = [stored.name.format(i=i).removesuffix(".weight") for i in adapted_layers(model)]
        if not any(f"{PREFIX}{m}.lora_A.weight" in found for m in modules):
            continue
        stacked = [_read_layer(m, found, shape=shapes[path][1:], rank=max_rank) for m in modules]
        scale = [
            _read_scale(m, rank, config=config, max_rank=max_rank)
            for m, (_, _, rank) in zip(modules, stacked, strict=True)
        ]
        a, b = np.stack([s[0] for s in stacked]), np.stack([s[1] for s in stacked])
        _put(factors, path, {"a": jnp.asarray(a), "b": jnp.asarray(b)})
        _put(scales, path, {"scale": jnp.asarray(np.stack(scale))})
    if found:
        raise ValueError(f"tensors without a place in the model: {shorten(found)}")
    if not factors:
        raise ValueError(f"{WEIGHTS} holds no factors; check that it is complete")
    dropout = float(config.get("lora_dropout", 0.0))
    return with_scale(model, scales, dropout=dropout), {"lora": factors}


def read_factors(path: Path, model: LanguageModel) -> dict[str, np.ndarray]:
    """Returns the matrices of an adapter's file, float32, under the current names of `peft`.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged, or holds a tensor that is not a matrix of finite numbers.
    """
    tensors = find_family({"model_type": model.config.model_type}).tensors
    found: dict[str, np.ndarray] = {}
    for stored, entry in read_file(path).items():
        name = PREFIX + family_name(stored, tensors)
        if len(entry.shape) != 2 or not jnp.issubdtype(entry.dtype, jnp.floating):
            raise ValueError(
                f"{entry.where} is {entry.dtype} of shape {list(entry.shape)}, not a LoRA factor"
            )
        if name in found:
            raise ValueError(f"{entry.where} is stored under a second name too; keep one of them")
        found[name] = entry.read(np.float32)
    return found


def _find_range(model: LanguageModel, found: dict[str, np.ndarray]) -> tuple[int, int]:
    """Returns the first adapted layer and the one after the last; all layers if there is none."""
    num_layers = model.config.num_layers
    stored = [tensor.name.removesuffix(".weight") for tensor in _stored_layers(model).values()]
    names = {i: [f"{PREFIX}{name.format(i=i)}.lora_A.weight" for name in stored]
             for i in range(num_layers)}  # fmt: skip
    there = [i for i in range(num_layers) if not found.keys().isdisjoint(names[i])]
    return (there[0], there[-1] + 1) if there else (0, num_layers)


def _read_layer(module: str, found: dict[str, np.ndarray], *, shape: tuple[int, int], rank: int):
    """Returns a layer's A `[in, R]`, B `[R, out]`, zero-padded, and rank; removes from `found`."""
    a = np.zeros((shape[0], rank), np.float32)
    b = np.zeros((rank, shape[1]), np.float32)
    names = f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"
    if names[0] not in found:
        return a, b, 0
    if names[1] not in found:
        raise ValueError(f"the adapter lacks {names[1]}")
    stored_a, stored_b = found.pop(names[0]).T, found.pop(names[1]).T
    own = stored_a.shape[1]
    if stored_a.shape != (shape[0], own) or stored_b.shape != (own, shape[1]):
        raise ValueError(
            f"{module}: factors {stored_a.shape} and {stored_b.shape} do not fit a layer of "
            f"{shape[0]} x {shape[1]}; is this the adapter's base model?"
        )
    a[:, :own], b[:own] = stored_a, stored_b
    return a, b, own


def _read_scale(module: str, rank: int, *, config: dict[str, Any], max_rank: int) -> np.ndarray:
    """Returns a layer's scale `[R]`: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    if rank and rank != (stated := match_pattern(config.get("rank_pattern"), module, config["r"])):
        raise ValueError(f"{module} has factors of rank {rank}, but {CONFIG} has {stated}")
    alpha = float(match_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    divisor = rank**0.5 if config.get("use_rslora") else rank
    return np.where(np.arange(max_rank) < rank, alpha / max(divisor, 1), 0.0).astype(np.float32)


def _write_config(
    model: LanguageModel, ranks: dict[str, int], *, alphas: dict[str, float], base_name: str
) -> dict[str, Any]:
    """Returns the adapter_config.json; the most common values are defaults, others patterns."""
    rounded = {module: round(alpha, 6) for module, alpha in alphas.items()}
    # Together, so that readers without patterns find the scale, alpha / rank, of most layers
    pairs = [(rank, rounded[module]) for module, rank in ranks.items()]
    rank, alpha = max(dict.fromkeys(pairs), key=pairs.count)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": model.lora_dropout,
        "target_modules": sorted(ranks),
        "layers_to_transform": list(adapted_layers(model)) if model.lora_layers else None,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(m): a for m, a in rounded.items() if a != alpha},
        "bias": "none",
        # GPT-2's Conv1D stores its weights as [in, out]
        "fan_in_fan_out": not any(t.transposed for t in _stored_layers(model).values()),
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _stored_layers(model: LanguageModel) -> dict[str, Tensor]:
    """Returns our dotted path of every linear layer, and the published tensor of its kernel."""
    tensors = find_family({"model_type": model.config.model_type}).tensors
    return {path: tensors[f"{path}.kernel"] for path in linear_layers(model)}


def _get(tree: PyTree, path: str) -> PyTree:
    for key in path.split("."):
        if key not in tree:
            return None
        tree = tree[key]
    return tree


def _put(tree: PyTree, path: str, leaf: PyTree) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = leaf
