"""Loads tokenizers with `transformers`, and checks them against the model."""

from pathlib import Path
from typing import Any

from fedjax_post.hub import gguf
from fedjax_post.hub.documents import read_json
from fedjax_post.hub.files import find_folder
from fedjax_post.model.config import DecoderConfig


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> Any:
    """Returns the `transformers` tokenizer of a folder, file or hub name; code in it is never run.

    Args:
      name_or_path: "builtin", "smollm2", a folder, a GGUF file, or a hub name.
      revision: branch, tag or commit, for a hub name.

    Raises:
      FileNotFoundError: if there is no such folder or it contains no tokenizer.
      ValueError: if its files cannot be read (with the damaged file), or it needs code of its own.

    Example:
      >>> tokenizer = load_tokenizer("builtin")
      >>> tokens = tokenizer("name the kind of each word: cat")["input_ids"]
      >>> len(tokens), tokenizer.decode(tokens, skip_special_tokens=True)
      (9, 'name the kind of each word: cat')
    """
    folder = find_folder(name_or_path, revision=revision)
    if gguf.is_gguf(folder):
        return gguf.make_tokenizer(gguf.read_gguf(folder))
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"{folder} has no tokenizer files ({', '.join(names)}); "
            "copy those of the original model into it"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers library raises these directly, and panics
        raise ValueError(_find_damage(folder, error)) from error


def _find_damage(folder: Path, error: BaseException) -> str:
    """Returns which file causes an error, and what is wrong with it."""
    for path in sorted(folder.glob("*.json")):
        try:
            read_json(path)
        except (OSError, ValueError) as reason:
            return str(reason)
    if "trust_remote_code" in str(error):
        return (
            f"{folder} has a tokenizer with code of its own (auto_map), which is never run; "
            "use a tokenizer that transformers supports"
        )
    blamed, summary = folder, " ".join(f"{type(error).__name__}: {error}".split())
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(folder / "tokenizer.json"))
            blamed = folder / "tokenizer_config.json"
        except BaseException:  # bare ones, and panics
            blamed = folder / "tokenizer.json"
    return f"{blamed} does not hold a tokenizer ({summary[:300]}); copy or download it again"


def pad_id_of(tokenizer: Any) -> int:
    """Returns the id of the token that fills rows: padding, or end of sequence if there is none."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def check_tokenizer(tokenizer: Any, config: DecoderConfig) -> None:
    """Raises if a tokenizer can return ids that are not in the model's embedding.

    A smaller tokenizer is allowed: published embeddings are often padded.

    Raises:
      ValueError: with both sizes.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model's embedding has "
            f"{config.vocab_size}; use the tokenizer that was published with this model"
        )
