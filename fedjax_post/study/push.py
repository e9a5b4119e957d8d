"""Uploads what a run deploys to a model hub, with a card that says how it was made.

The card is that of the run's adapter, and what the summary adds: data, bytes, privacy, disclosure,
and the passport of the base. Paths of this machine are left out of what is uploaded. The token is
the one that `huggingface_hub` finds (`hf auth login`, or `HF_TOKEN`).
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedjax_post.hub.adapter_config import CONFIG
from fedjax_post.hub.artefact import CARD
from fedjax_post.openness import passport as of
from fedjax_post.openness.artefact import passport_of
from fedjax_post.openness.framework import CLASSES
from fedjax_post.openness.read import load_passport
from fedjax_post.report.records import read_summary
from fedjax_post.report.table import format_bytes
from fedjax_post.study import folder, licence
from fedjax_post.study.files import read_unsupplied
from fedjax_post.study.spec import Spec

_WITH_PATHS = ("model.name", "model.proxy", "adapter.init")
_IGNORED = (".*", "*.tmp")


def push(directory: str | Path, repo: str, *, public: bool = False) -> str:
    """Uploads a finished run's adapter or model with its card, and returns the address.

    Args:
      directory: of the run.
      repo: name of the repository, as `user/name`; created if it does not exist.
      public: whether a new repository can be read by all.

    Raises:
      FileNotFoundError: if the folder contains no run that has ended, or one without an adapter.
      OSError: if the hub cannot be reached or refuses, for example without a token.
      ValueError: for a name that cannot be that of a repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    with TemporaryDirectory() as scratch:
        upload = _prepare(Path(directory), Path(scratch) / "upload")
        api = HfApi(library_name="fedjax_post")
        address = api.create_repo(repo, private=not public, exist_ok=True)
        message = "What a simulated federation trained"
        api.upload_folder(repo_id=address.repo_id, folder_path=upload, commit_message=message)
    return str(address)


def card(directory: str | Path) -> str:
    """Returns the card that `push` uploads.

    Raises:
      FileNotFoundError: as `push`.
    """
    directory = Path(directory)
    spec, summary = read_unsupplied(folder.spec_file(directory)), read_summary(directory)
    text = (folder.adapter_of(directory) / CARD).read_text(encoding="utf-8")
    sections = [
        ("How it was trained", _training(summary)),
        ("Privacy", _privacy(summary)),
        ("How open the base is", _passport(spec)),
    ]
    added = "\n".join(f"## {title}\n\n{_bullets(lines)}\n" for title, lines in sections)
    return _without_paths(f"{text.rstrip()}\n\n{added}", spec)


def _prepare(directory: Path, upload: Path) -> Path:
    text = card(directory)
    ignore = shutil.ignore_patterns(*_IGNORED)
    shutil.copytree(folder.adapter_of(directory), upload, ignore=ignore)
    (upload / CARD).write_text(text, encoding="utf-8")
    for path in upload.rglob(CONFIG):
        config = json.loads(path.read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path") or ""
        config["base_model_name_or_path"] = _public(base)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return upload


def _training(summary: Mapping[str, Any]) -> list[str]:
    told = [f"{summary['rounds']} rounds and {summary['visits']} visits of clients"]
    if summary["bytes_up"] is not None:
        each = [
            f"{way} {format_bytes(summary[f'bytes_{way}'])} in all, "
            f"{format_bytes(summary[f'bytes_{way}_per_client'])} per client and round"
            for way in ("up", "down")
        ]
        told.append(f"bytes of all messages: {'; '.join(each)}")
    people = summary["population"]
    told.append(
        f"{people['clients']:,} clients with {people['examples']:,} examples, "
        f"{people['examples_min']:,} to {people['examples_max']:,} each ({people['partition']})"
    )
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    told.append(f"commit {summary['commit']}; {versions}; {summary['device']}")
    return [*told, *(f"warning: {warning}" for warning in summary["warnings"])]


def _privacy(summary: Mapping[str, Any]) -> list[str]:
    """Returns what is promised to clients, and what has left the federation."""
    private, secure, shown = (summary.get(n) for n in ("privacy", "secure_sum", "disclosure"))
    told = ["no differential privacy: epsilon is not bounded"]
    if private is not None:
        epsilon = private["epsilon"]
        spent = "not bounded" if epsilon is None else f"{epsilon:.3g}"
        told = [f"epsilon {spent} at delta {private['delta']:.2g} for {private['unit']}"]
        told.append(f"not covered: {private['not_covered']}")
    if secure is not None:
        told.append(f"secure sums of {secure['threshold']} clients or more")
    if shown is not None:
        told.append(
            f"{shown['private_tokens']:,} private tokens and {shown['labels']:,} labels were shown "
            f"to a party outside the federation, in {shown['queries']:,} queries"
        )
    return told


def _passport(spec: Spec) -> list[str]:
    name = passport_of(str(spec.model.name))
    if not name:
        return [f"no passport of {_public(str(spec.model.name))} is known"]
    passport = load_passport(name)
    points, known = of.index_score(passport)
    found = [
        f"{passport.title}, {passport.producer}",
        f"Model Openness Framework: class {CLASSES[of.classify(passport).rank]}",
        f"Open Source AI Definition: {of.meets_definition(passport)}",
        f"European Open Source AI Index: {points:g} of {known} known dimensions",
        f"access that it grants: {passport.tier.value}",
    ]
    return found + [
        f"{rule['about']}: {rule['says']} ({rule['source']}, {rule['date']})"
        for rule in licence.terms(str(spec.model.name), passport=name)
    ]


def _without_paths(text: str, spec: Spec) -> str:
    """Returns a text in which folders of this machine have their last name alone."""
    for path in _WITH_PATHS:
        given = spec.at(path)
        if isinstance(given, str) and given != _public(given):
            text = text.replace(given, _public(given))
    return text


def _public(name: str) -> str:
    """Returns the name of a model for others: of a folder or file, its last part."""
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)
