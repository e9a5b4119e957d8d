"""Where a model or tokenizer lies: a local folder, a built-in one, or a hub name."""

import hashlib
from pathlib import Path

from fedjax_post.hub.documents import check_regular

# name -> folder beside this file
BUILTIN = {
    "builtin": "builtin",  # formal notation and prose; follows no instructions
    "builtin-instruct": "builtin_instruct",  # the same, gone on with instructions and examples
    "builtin-small": "builtin_small",  # half the width and depth, from instructions alone
}
PATIENCE = 5.0  # seconds that the hub has to answer
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]  # what is read


def find_folder(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """Returns the local folder of a model, downloading a hub name if it is not cached.

    `HF_HOME` and `HF_HUB_OFFLINE` are honoured by `huggingface_hub`.

    Args:
      name_or_path: a name in `BUILTIN`, a folder, or a hub name such as "org/model".
      revision: branch, tag or commit of a hub name.

    Raises:
      FileNotFoundError: if it is none of these; says how to get it.
      ValueError: if what would be read of it is no regular file.
    """
    folder = _find(str(name_or_path), revision)
    for path in (path for pattern in PATTERNS for path in folder.glob(pattern)):
        check_regular(path)
    return folder


def fingerprint(name_or_path: str | Path) -> str:
    """Returns the SHA-256 of a model's weight files, in order; "" if it has none here."""
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
        why = error.__cause__ or error
        raise FileNotFoundError(
            f"model={name} is neither a local folder nor in the local cache{at}, and the hub "
            f"could not give it ({type(why).__name__}); on a machine with network run "
            f"`hf download {name}` and copy the folder, or pass the path of a folder"
        ) from error
    return Path(cached)


def _fetch(name: str, revision: str | None) -> str:
    """Downloads what is not cached; without a hub that answers at once, what is cached.

    Asked first by a single request, because a download tries each of its requests six
    times: 23 seconds for a pinned revision on a machine without network.
    """
    import huggingface_hub

    unreachable = None
    try:
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except Exception as error:  # of a transport library that is the hub client's own affair
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
