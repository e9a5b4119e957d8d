"""Tokenizers, through `transformers`, checked against the model that they feed."""

import json
from pathlib import Path
from typing import Any

from fedjax_post.hub.files import find_folder
from fedjax_post.model.config import DecoderConfig


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> Any:
    """Returns the `transformers` tokenizer of a folder or hub name.

    Raises:
      FileNotFoundError: if there is no such folder or it holds no tokenizer.
      ValueError: if its files cannot be read, naming the one that is damaged.
    """
    folder = find_folder(name_or_path, revision=revision)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"{folder} has no tokenizer files ({', '.join(names)}); "
            "pass a folder with one as --tokenizer"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises bare ones
        raise ValueError(f"{_find_damage(folder, error)}; copy or download it again") from error


def _find_damage(folder: Path, error: Exception) -> str:
    """Which file is to blame for an error, and what is wrong with it."""
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as reason:
            return f"{path} is not JSON: {reason}"
    whole = folder / "tokenizer.json"
    return f"{whole if whole.exists() else folder} does not hold a tokenizer: {error!r}"


def pad_id_of(tokenizer: Any) -> int:
    """Returns the token that fills rows: the tokenizer's own, or the end of sequence."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def check_tokenizer(tokenizer: Any, config: DecoderConfig) -> None:
    """Refuses a tokenizer that can emit ids which the embedding does not have.

    A smaller tokenizer is fine: published embeddings are often padded.

    Raises:
      ValueError: naming both sizes.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model's embedding has "
            f"{config.vocab_size}; use the tokenizer that was published with this model"
        )
