"""Loads rows from their source: the built-in tasks, local files, a folder, memory, or a hub.

| `dataset` | rows to train on | held-out rows |
| --- | --- | --- |
| `builtin` | the built-in tasks | the tasks' test split |
| `builtin-corpus` | formulas of the base's corpus; see `documents` | its test split |
| `builtin-kinds`, `..-mixed` | lists of nouns, answered by one kind; see `kinds` | its test split |
| a json, jsonl, csv, tsv or parquet file | its rows | none |
| a folder, see `folders` | one client for each file, or split train | files or splits for testing |
| rows in memory | these rows | none |
| another name, `name:config` | from the hub, split train | the matching split, see `choose` |

Text is kept as it is in the file, see `json_rows` and `delimited`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_post.data.cached import read_parquet, read_text
from fedjax_post.data.files import KINDS, ending_of, find_file
from fedjax_post.data.folders import load_folder
from fedjax_post.data.splits import Origin, Splits, choose
from fedjax_post.data.typed import from_memory

if TYPE_CHECKING:
    from datasets import Dataset

BUILTIN = ("builtin", "builtin-kinds", "builtin-kinds-mixed", "builtin-corpus")


def load_splits(
    dataset: "str | Path | Splits | Dataset | Mapping[str, Dataset] | Sequence[dict]",
    *,
    split: str | None = None,
    num_clients: int | None = None,
    seed: int = 0,
) -> Splits:
    """Returns the rows of a data set; see the table at the beginning of this module.

    Args:
      dataset: a name or path, rows in memory, or `Splits`, which are returned unchanged. An
        existing path takes precedence over a name on the hub.
      split: the split to train on, where there are several; see `choose`.
      num_clients: number of clients of the built-in tasks, None for the default. Other
        sources determine their clients themselves.
      seed: seed of the built-in tasks.

    Raises:
      ValueError: if there is no such data set or it has no rows; the message has `dataset`.
    """
    if isinstance(dataset, Splits):
        return dataset
    name = dataset if isinstance(dataset, str | Path) else "rows in memory"
    if isinstance(dataset, Mapping):
        splits = _choose_splits(dataset, name, split)
    elif isinstance(dataset, str | Path):
        splits = _load_named(str(dataset), split=split, num_clients=num_clients, seed=seed)
    else:
        _refuse_split(split, name)
        import datasets

        given = isinstance(dataset, datasets.Dataset)
        splits = Splits(dataset if given else from_memory(dataset), None)  # type: ignore[arg-type]
    if not len(splits.train):
        raise ValueError(f"dataset={name} has no rows to train on; choose another one")
    return splits


def check_source(name: str) -> None:
    """Raises for a name that cannot be a data set, before anything is read.

    Raises:
      ValueError: for a path that does not exist, and for a file of an unknown kind.
    """
    path = Path(name).expanduser()
    if name in BUILTIN or path.is_dir():
        return
    if path.exists():
        if find_file(path) is None:
            raise ValueError(f"dataset={name} is of an unknown kind; use {', '.join(KINDS)}")
    elif ending_of(name) or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(:.+)?", name):
        raise ValueError(f"dataset={name}: no such file or folder; check the path")


def _load_named(name: str, *, split: str | None, num_clients: int | None, seed: int) -> Splits:
    check_source(name)
    path = Path(name).expanduser()
    if name not in BUILTIN and path.is_dir():
        return load_folder(path, split=split)
    if name not in BUILTIN and not path.exists():
        return _load_hub(name, split)
    _refuse_split(split, name)
    if name not in BUILTIN:
        file = find_file(path)
        assert file is not None  # `check_source` has refused this case
        read = read_parquet if file.kind == "parquet" else lambda file: read_text([file])
        return Splits(read(file), None, Origin(files=(file,)))
    from fedjax_post.data import documents, kinds
    from fedjax_post.data.builtin import tasks

    given: dict[str, Any] = {} if num_clients is None else {"num_clients": num_clients}
    if name == "builtin":
        made = tasks.rows(**given, seed=seed)
    elif name == "builtin-corpus":
        made = documents.rows(**given, seed=seed)
    else:
        convention = "mixed" if name.endswith("mixed") else "last"
        made = kinds.rows(**given, seed=seed, convention=convention)
    return Splits(made["train"], made["test"])


def _load_hub(name: str, split: str | None) -> Splits:
    import datasets

    name, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:
        raise ValueError(
            f"dataset={name} is not a local path and cannot be loaded from the hub "
            f"({type(error).__name__}: {error}); check the name and the network, or give a "
            f"local file, a folder, or one of {', '.join(BUILTIN)}"
        ) from error
    return _choose_splits(found, name, split)


def _choose_splits(splits: Any, name: object, split: str | None) -> Splits:
    train, heldout = choose(splits, name, split=split)
    held = splits[heldout] if heldout else None
    return Splits(splits[train], held, Origin(train), Origin(heldout or "test"))


def _refuse_split(split: str | None, name: object) -> None:
    if split is not None:
        raise ValueError(f"split={split}: dataset={name} has no splits; leave `split` out")
