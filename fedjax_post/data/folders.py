"""Folders of rows: saved by `datasets`, copied from a hub, or with one file for each client.

| folder | read as |
| --- | --- |
| written by `save_to_disk` | its splits |
| files such as `train-00000-of-00002.parquet`, there or in `data/` | splits, joined from parts |
| one file that is not for evaluation | rows to train on, without clients |
| several such files | one client for each file; its stem is in the column `client` |
| `ann.json` and `ann_test.json` | rows of the client `ann` to train on, and held-out rows of it |

Files for evaluation are recognised by their names, see `is_held_out`. Hidden files, files of other
kinds and the metadata files of `datasets` are ignored.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from fedjax_post.data.cached import read_parquet, read_text
from fedjax_post.data.files import KINDS, File, ending_of, find_file
from fedjax_post.data.partition import natural_key
from fedjax_post.data.splits import Origin, Splits, choose, is_held_out, kind_of
from fedjax_post.data.typed import as_text

if TYPE_CHECKING:
    from datasets import Dataset

_NOTES = ("dataset_info.json", "dataset_infos.json")
_PART = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]{16})?")


def load_folder(path: Path, *, split: str | None = None) -> Splits:
    """Returns the rows of a folder; see the table at the beginning of this module.

    Args:
      path: path of the folder.
      split: the split to train on, where there are several; see `choose`.

    Raises:
      ValueError: for a folder without rows, and for files that do not belong together.
    """
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _load_saved(path, split)
    files = _files(path)
    if not files and (path / "data").is_dir():
        files = _files(path / "data")
    if not files:
        _refuse_empty(path)
    parts: dict[str, list[File]] = {}
    for file in files:
        match = _PART.fullmatch(file.stem)
        parts.setdefault(match[1] if match else "", []).append(file)
    if list(parts) == [""]:
        _check_stems(path, files)
    if split is not None and list(parts) == [""]:  # without parts, the files may be the splits
        parts = {file.stem: [file] for file in files}
    if "" not in parts:
        train, heldout = choose(parts, path, split=split)
        heldout_files = parts[heldout] if heldout else []
        names = (train, heldout or "")
        return _join(path, parts[train], heldout_files, names=names, clients=False)
    if len(parts) > 1:
        raise ValueError(
            f"dataset={path} holds parts of splits ({', '.join(filter(None, parts))}) beside other "
            f"files (such as {parts[''][0].path.name}); remove one or the other"
        )
    train_files = [file for file in files if not is_held_out(file.stem)]
    if not train_files:
        raise ValueError(f"dataset={path} has only files for evaluation and none to train on")
    return _join(
        path,
        train_files,
        [file for file in files if is_held_out(file.stem)],
        names=("train", "test"),
        clients=len(train_files) > 1,
    )


def _refuse_empty(path: Path) -> NoReturn:
    below = [
        folder.name
        for folder in _entries(path)
        if folder.is_dir() and any(map(ending_of, (entry.name for entry in folder.iterdir())))
    ]
    raise ValueError(
        f"dataset={path} has no files to train on; put one file for each client there "
        f"({', '.join(KINDS)})" + f", or choose a folder in it: {', '.join(below)}" * bool(below)
    )


def _load_saved(path: Path, split: str | None) -> Splits:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:
        raise ValueError(f"dataset={path} cannot be read: {error}") from error
    if isinstance(saved, dict):
        train, heldout = choose(saved, path, split=split)
        return Splits(
            saved[train],
            saved[heldout] if heldout else None,
            Origin(train),
            Origin(heldout or "test"),
        )
    if split is not None:
        raise ValueError(f"split={split}: dataset={path} has no splits; leave `split` out")
    return Splits(saved, None)


def _entries(path: Path) -> list[Path]:
    found = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: natural_key(entry.name))


def _files(path: Path) -> list[File]:
    entries = [e for e in _entries(path) if not e.is_dir() and e.name not in _NOTES]
    return [file for entry in entries if (file := find_file(entry)) is not None]


def _check_stems(path: Path, files: Sequence[File]) -> None:
    seen: dict[str, File] = {}
    for file in files:
        other = seen.setdefault(file.stem, file)
        if other is not file:
            raise ValueError(
                f"dataset={path} has two files for the client {file.stem}, {other.path.name} and "
                f"{file.path.name}; rename or remove one of them"
            )


def _join(
    path: Path,
    train: Sequence[File],
    heldout: Sequence[File],
    *,
    names: tuple[str, str],
    clients: bool,
) -> Splits:
    """Returns the rows of the files to train on, and of those for evaluation."""
    sides, origins = [], []
    for name, files in zip(names, (train, heldout), strict=True):
        # text files come first, since they are read as one table
        ordered = sorted(files, key=lambda file: file.kind == "parquet")
        sides.append(_read(path, ordered, clients) if files else None)
        origins.append(Origin(name, tuple(ordered)))
    assert sides[0] is not None
    if clients and sides[1] is not None:
        sides[1] = _with_owners(sides[1], train, heldout)
    return Splits(sides[0], sides[1], *origins)


def _with_owners(rows: "Dataset", train: Sequence[File], heldout: Sequence[File]) -> "Dataset":
    """Returns held-out rows as rows of the client whose file has the same name but for `test`."""
    stems: dict[tuple[str, ...], list[str]] = {}
    for file in train:
        stems.setdefault(tuple(kind_of(file.stem)), []).append(file.stem)
    found = {file.stem: stems.get(tuple(kind_of(file.stem)), []) for file in heldout}
    owner = {stem: like[0] for stem, like in found.items() if kind_of(stem) and len(like) == 1}
    if not owner:
        return rows
    names = [owner.get(name, name) for name in rows["client"]]
    return rows.remove_columns("client").add_column("client", np.asarray(names))


def _read(path: Path, files: Sequence[File], clients: bool) -> "Dataset":
    import datasets

    texts = [file for file in files if file.kind != "parquet"]
    parts = [read_text(texts, clients=clients)] if texts else []
    for file in files[len(texts) :]:
        rows = read_parquet(file)
        if clients and "client" not in rows.column_names:
            rows = rows.add_column("client", np.full(len(rows), file.stem))
        parts.append(rows)
    types: dict[str, set[str]] = {}
    for rows in parts:
        for name, feature in rows.features.items():
            types.setdefault(name, set()).add(repr(feature))
    mixed = [name for name, found in types.items() if len(found) > 1]
    parts = [as_text(rows, [name for name in mixed if name in rows.features]) for rows in parts]
    parts = [_with_one_text(rows, mixed) for rows in parts]
    try:
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise ValueError(
            f"dataset={path}: the columns of the files differ in type; write all files in one form "
            f"({error})"
        ) from error


def _with_one_text(rows: "Dataset", names: Sequence[str]) -> "Dataset":
    """Returns rows whose columns of text are of one of Arrow's two types of text."""
    import datasets

    text = datasets.Value("string")
    for name in names:
        if rows.features.get(name) == datasets.Value("large_string"):
            rows = rows.cast_column(name, text)
    return rows
