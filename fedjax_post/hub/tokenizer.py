"""Tokenizers, through `transformers`, checked against the model that they feed."""

from pathlib import Path
from typing import Any

from fedjax_post.hub.files import find_folder
from fedjax_post.model.config import DecoderConfig


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> Any:
    """Returns the `transformers` tokenizer of a folder or hub name.

    Raises:
      FileNotFoundError: if there is no such folder or it holds no tokenizer.
    """
    folder = find_folder(name_or_path, revision=revision)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"{folder} has no tokenizer files ({', '.join(names)}); "
            "pass a folder with one as --tokenizer"
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


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


def check_chat_template(tokenizer: Any) -> None:
    """Refuses a tokenizer without a chat template where one is needed.

    Raises:
      ValueError: naming the tokenizer and the remedy.
    """
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        raise ValueError(
            f"{name} has no chat template; use a prompt template, or a model tuned for chat"
        )
