"""Reads and writes prompts: soft ones in the format of `peft`'s prompt tuning, texts as JSON.

`peft` (0.21) puts its virtual tokens before the whole row, bos included; here a prompt follows
bos. The folder therefore gives the same logits in `peft` for rows without bos. For other rows,
the prompt must be inserted after bos by hand.
"""

import reprlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fedjax_post.adapters.prompt import text_prompt
from fedjax_post.hub.adapter_config import CONFIG, WEIGHTS
from fedjax_post.hub.documents import read_json, write_json
from fedjax_post.hub.tensors import read_file, write_file
from fedjax_post.model.prompted import prompt_length
from fedjax_post.model.views import LanguageModel

PyTree = Any
TEXT = "prompt.json"
NAME = "prompt_embeddings"  # name of the only tensor, [P, D]
# Fields of peft's configuration that do not change the meaning of the stored vectors
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "num_attention_heads"),
    *("num_layers", "num_virtual_tokens", "peft_type", "peft_version", "prompt_tuning_init"),
    *("prompt_tuning_init_state_dict_path", "prompt_tuning_init_text", "revision", "task_type"),
    *("token_dim", "tokenizer_kwargs", "tokenizer_name_or_path"),
}


def save_prompt(
    directory: str | Path,
    model: LanguageModel,
    params: PyTree,
    *,
    text: str = "",
    base_name: str = "",
    run: str = "",
) -> None:
    """Writes a prompt as a folder: `peft`'s files for embeddings, `prompt.json` for tokens.

    Args:
      directory: created if it does not exist; existing files are overwritten.
      model: the base model.
      params: `{"prompt": {"embeddings": [P, D]}}` or `{"prompt": {"tokens": [P]}}`.
      text: the text of the tokens, for human readers; only the tokens are loaded.
      base_name: hub name or path of the base.
      run: description of the run that made the prompt, kept with it.

    Raises:
      ValueError: if `params` holds no prompt, or more than a prompt.
    """
    if set(params) != {"prompt"} or not prompt_length(params):
        raise ValueError(
            f"a prompt folder holds only a prompt, got the collections {sorted(params)}; "
            "write an adapter with save_adapter"
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    prompt = {kind: np.asarray(value) for kind, value in params["prompt"].items()}
    if "tokens" in prompt:
        content = {"tokens": prompt["tokens"].tolist(), "text": text, "base": base_name, "run": run}
        write_json(folder / TEXT, content)
        return
    value = np.ascontiguousarray(prompt["embeddings"], np.float32)
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
    write_json(folder / CONFIG, config)
    write_file(folder / WEIGHTS, {NAME: value}, run=run)


def is_prompt(directory: str | Path) -> bool:
    """Returns whether a folder holds a prompt, of tokens or of embeddings."""
    folder = Path(directory)
    if (folder / TEXT).exists():
        return True
    path = folder / CONFIG
    return path.exists() and read_json(path).get("peft_type") == "PROMPT_TUNING"


def load_prompt(directory: str | Path, model: LanguageModel) -> PyTree:
    """Returns the prompt of a folder that `save_prompt` or `peft` wrote.

    Args:
      directory: has `prompt.json`, or the two files of `peft`.
      model: the base model.

    Raises:
      FileNotFoundError: if it has neither.
      ValueError: if it is another kind of adapter, or does not fit the model.
    """
    folder = Path(directory)
    if (folder / TEXT).exists():
        return text_prompt(_read_tokens(folder / TEXT, model))
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has neither {TEXT} nor {name}; is it a prompt?")
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "PROMPT_TUNING":
        raise ValueError(
            f"{folder / CONFIG}: peft_type {kind!r} is not prompt tuning; "
            "load LoRA with load_adapter"
        )
    for name, value in config.items():
        fits = value in (None, 1) if name == "num_transformer_submodules" else not value
        if name not in _HARMLESS and not fits:
            raise ValueError(
                f"{folder / CONFIG}: {name}={reprlib.repr(value)} is not supported; "
                "only plain prompt tuning is"
            )
    embeddings = _read_embeddings(folder / WEIGHTS, model)
    if config.get("num_virtual_tokens", len(embeddings)) != len(embeddings):
        raise ValueError(
            f"{folder / CONFIG}: num_virtual_tokens={config['num_virtual_tokens']!r}, but "
            f"{WEIGHTS} holds {len(embeddings)}"
        )
    return {"prompt": {"embeddings": embeddings}}


def _read_tokens(path: Path, model: LanguageModel) -> list[int]:
    tokens = read_json(path).get("tokens")
    if (
        not isinstance(tokens, list)
        or not tokens
        or any(type(token) is not int for token in tokens)
    ):
        raise ValueError(f"{path}: tokens must be a list of token numbers")
    wrong = [token for token in tokens if not 0 <= token < model.config.vocab_size]
    if wrong:
        raise ValueError(
            f"{path}: token {wrong[0]} is not among the model's {model.config.vocab_size}; "
            "load it with the base that it was made for"
        )
    return tokens


def _read_embeddings(path: Path, model: LanguageModel) -> Array:
    entries = read_file(path)
    if set(entries) != {NAME}:
        raise ValueError(f"{path} must hold only the tensor {NAME}, got {sorted(entries)}")
    shape = entries[NAME].shape
    if len(shape) != 2 or not shape[0] or shape[1] != model.config.hidden_size:
        raise ValueError(
            f"{path}: embeddings {list(shape)} do not fit the model's width of "
            f"{model.config.hidden_size}; load it with the base that it was made for"
        )
    return jnp.asarray(entries[NAME].read(np.float32))
