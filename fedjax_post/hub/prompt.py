"""Prompts in and out: a soft one as the folder of `peft`'s prompt tuning, a text one as JSON.

`peft` (0.21) puts its virtual tokens in front of the whole row, bos included; here a prompt
stands behind bos. So the folder gives the same logits in `peft` for rows without bos, and for
others if it is applied by hand behind bos.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fedjax_post.adapters.prompt import text_prompt
from fedjax_post.hub.weights import read_header
from fedjax_post.model.prompted import prompt_length
from fedjax_post.model.views import LanguageModel

PyTree = Any
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TEXT = "prompt.json"
NAME = "prompt_embeddings"  # of the one tensor, [P, D]


def save_prompt(
    directory: str | Path,
    model: LanguageModel,
    params: PyTree,
    *,
    text: str = "",
    base_name: str = "",
    run: str = "",
) -> None:
    """Writes a prompt as a folder: `peft`'s for embeddings, `prompt.json` for tokens.

    Args:
      directory: made if it does not exist; existing files are overwritten.
      model: the base model.
      params: `{"prompt": {"embeddings": [P, D]}}` or `{"prompt": {"tokens": [P]}}`.
      text: what the tokens spell, for readers; the tokens are what counts.
      base_name: hub name or path of the base.
      run: what made the prompt, kept with it.

    Raises:
      ValueError: if `params` holds no prompt, or more than a prompt.
    """
    if set(params) != {"prompt"} or not prompt_length(params):
        raise ValueError(
            f"a prompt's folder holds a prompt alone, got the collections {sorted(params)}; "
            "write an adapter with save_adapter"
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    prompt = {kind: np.asarray(value) for kind, value in params["prompt"].items()}
    if "tokens" in prompt:
        said = {"tokens": prompt["tokens"].tolist(), "text": text, "base": base_name, "run": run}
        (folder / TEXT).write_text(json.dumps(said, indent=2) + "\n")
        return
    from safetensors.numpy import save_file

    value = np.ascontiguousarray(prompt["embeddings"], np.float32)
    save_file({NAME: value}, str(folder / WEIGHTS), metadata={"format": "pt", "run": run})
    config = {
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_attention_heads": model.config.num_heads,
        "num_layers": model.config.num_layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": value.shape[0],
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "task_type": "CAUSAL_LM",
        "token_dim": value.shape[1],
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def is_prompt(directory: str | Path) -> bool:
    """Returns whether a folder holds a prompt, of words or of embeddings."""
    folder = Path(directory)
    if (folder / TEXT).exists():
        return True
    path = folder / CONFIG
    return path.exists() and json.loads(path.read_text()).get("peft_type") == "PROMPT_TUNING"


def load_prompt(directory: str | Path, model: LanguageModel) -> PyTree:
    """Returns the prompt of a folder that `save_prompt` or `peft` wrote.

    Args:
      directory: with `prompt.json`, or `peft`'s two files.
      model: the base model.

    Raises:
      FileNotFoundError: if neither is there.
      ValueError: if it is another kind of adapter, or does not fit the model.
    """
    folder = Path(directory)
    if (folder / TEXT).exists():
        params = text_prompt(json.loads((folder / TEXT).read_text())["tokens"])
        tokens = np.asarray(params["prompt"]["tokens"])
        if tokens.max(initial=0) >= model.config.vocab_size:
            raise ValueError(
                f"{folder / TEXT}: token {tokens.max()} is not among the model's "
                f"{model.config.vocab_size}; load it over the base that it was made for"
            )
        return params
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has neither {TEXT} nor {name}; is it a prompt?")
    kind = json.loads((folder / CONFIG).read_text()).get("peft_type")
    if kind != "PROMPT_TUNING":
        raise ValueError(
            f"{folder / CONFIG}: peft_type {kind!r} is no prompt tuning; "
            "LoRA is read by load_adapter"
        )
    return {"prompt": {"embeddings": _read_embeddings(folder / WEIGHTS, model)}}


def _read_embeddings(path: Path, model: LanguageModel) -> Array:
    entries = read_header(path)
    if set(entries) != {NAME}:
        raise ValueError(f"{path} must hold the tensor {NAME} alone, got {sorted(entries)}")
    value = entries[NAME].read()
    if value.ndim != 2 or value.shape[1] != model.config.hidden_size:
        raise ValueError(
            f"{path}: embeddings {list(value.shape)} do not fit the model's width of "
            f"{model.config.hidden_size}; load it over the base that it was made for"
        )
    return jnp.asarray(value, jnp.float32)
