"""Tokenizers, through `transformers`, checked against the model that they feed."""

from pathlib import Path
from typing import Any

from fedjax_post.hub import gguf
from fedjax_post.hub.documents import read_json
from fedjax_post.hub.files import find_folder
from fedjax_post.model.config import DecoderConfig


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> Any:
    """Returns the `transformers` tokenizer of a folder, file or hub name; code in it never runs.

    Raises:
      FileNotFoundError: if there is no such folder or it holds no tokenizer.
      ValueError: if its files cannot be read, naming the one that is damaged, or it is a
        tokenizer of its own code.
    """
    folder = find_folder(name_or_path, revision=revision)
    if gguf.is_gguf(folder):
        return gguf.make_tokenizer(gguf.read_gguf(folder))
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"{folder} has no tokenizer files ({', '.join(names)}); "
            "copy those of the model that it was made from beside it"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers library raises bare ones, and its panics
        raise ValueError(_find_damage(folder, error)) from error


def _find_damage(folder: Path, error: BaseException) -> str:
    """Which file is to blame for an error, and what is wrong with it."""
    for path in sorted(folder.glob("*.json")):
        try:
            read_json(path)
        except (OSError, ValueError) as reason:
            return str(reason)
    if "trust_remote_code" in str(error):
        return (
            f"{folder} has a tokenizer that is code of its own (auto_map), which never runs here; "
            "use a tokenizer that transformers knows"
        )
    blamed, told = folder, " ".join(f"{type(error).__name__}: {error}".split())
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(folder / "tokenizer.json"))
            blamed = folder / "tokenizer_config.json"
        except BaseException:  # bare ones, and panics
            blamed = folder / "tokenizer.json"
    return f"{blamed} does not hold a tokenizer ({told[:300]}); copy or download it again"


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
