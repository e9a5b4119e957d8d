"""Where a model or tokenizer lies: a local folder, the built-in one, or a hub name."""

from pathlib import Path

BUILTIN = "builtin"
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]


def find_folder(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """Returns the local folder of a model, downloading a hub name if it is not cached.

    `HF_HOME` and `HF_HUB_OFFLINE` are honoured by `huggingface_hub`.

    Args:
      name_or_path: "builtin", a folder, or a hub name such as "org/model".
      revision: branch, tag or commit of a hub name.

    Raises:
      FileNotFoundError: if it is none of these; says how to get it.
    """
    name = str(name_or_path)
    if name == BUILTIN:
        folder = Path(__file__).parent / BUILTIN
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"the built-in model is not installed at {folder}")
        return folder
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"--model={name}: there is no such folder")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        cached = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=PATTERNS)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"--model={name} is neither a local folder nor in the local cache{at}, and the hub "
            f"could not give it ({type(error).__name__}); on a machine with network run "
            f"`hf download {name}` and copy the folder, or pass the path of a folder"
        ) from error
    return Path(cached)
