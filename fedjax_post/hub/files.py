"""Finds the files of a model or tokenizer: in a local folder, a built-in one, or on the hub."""

import hashlib
from pathlib import Path

from fedjax_post.hub.documents import check_regular

# name -> folder beside this file
BUILTIN = {
    "builtin": "builtin",  # formal notation and prose; follows no instructions
    "builtin-instruct": "builtin_instruct",  # the same, then trained on instructions and examples
    "builtin-small": "builtin_small",  # half the width and depth, trained on instructions alone
}
PATIENCE = 5.0  # seconds to wait for an answer of the hub
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]  # files that are read


def find_folder(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """Returns the local folder of a model, after downloading a hub name if it is not cached.

    `huggingface_hub` respects `HF_HOME` and `HF_HUB_OFFLINE`.

    Args:
      name_or_path: a name in `BUILTIN`, a folder, or a hub name such as "org/model".
      revision: branch, tag or commit, for a hub name.

    Raises:
      FileNotFoundError: if it is none of these; the message says how to get it.
      ValueError: if one of the files to read is not a regular file.
    """
    folder = _find(str(name_or_path), revision)
    for path in (path for pattern in PATTERNS for path in folder.glob(pattern)):
        check_regular(path)
    return folder


def fingerprint(name_or_path: str | Path) -> str:
    """Returns the SHA-256 of a model's weight files, in order; "" if there are none here."""
    try:
        files = sorted(_find(str(name_or_path), None).glob("*.safetensors"))
    except FileNotFoundError:
        return ""
    digest = hashlib.sha256()
    for path in files:
        check_regular(path)
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else ""


def _find(name: str, revision: str | None) -> Path:
    if name in BUILTIN:
        folder = Path(__file__).parent / BUILTIN[name]
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"the built-in model is not installed at {folder}")
        return folder
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"model={name}: there is no such folder")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        cached = _fetch(name, revision)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = error.__cause__ or error
        raise FileNotFoundError(
            f"model={name} is neither a local folder nor in the local cache{at}, and could not be "
            f"loaded from the hub ({type(reason).__name__}); on a machine with network run "
            f"`hf download {name}` and copy the folder, or pass the path of a folder"
        ) from error
    return Path(cached)


def _fetch(name: str, revision: str | None) -> str:
    """Returns the cached folder, after downloading missing files if the hub answers quickly.

    A single request is tried first, because a download repeats each of its requests six times,
    which takes 23 seconds for a pinned revision on a machine without network.
    """
    import huggingface_hub

    unreachable = None
    try:
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except Exception as error:  # its type depends on the hub client's transport library
        unreachable = error
    try:
        return huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=PATTERNS,
            local_files_only=unreachable is not None,
        )
    except OSError as error:
        raise error from unreachable
