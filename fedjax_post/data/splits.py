"""Rows to train on, rows held out, and where they come from."""

import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedjax_post.data.files import File, locate

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
# Words of a file's or split's name, in order of preference.
HELD_OUT = ("test", "heldout", "valid", "validation", "val", "eval", "evaluation", "dev")


class Origin(NamedTuple):
    """Where the rows of a data set come from, for reports and messages."""

    split: str = "train"  # its name
    files: tuple[File, ...] = ()  # that hold the rows, in this order; empty: no files of ours
    numbers: np.ndarray | None = None  # [num_rows], of the rows in the source; None: in order

    def row(self, index: int) -> "Row":
        """Returns what a row of the data set is called in messages."""
        return Row(self, int(index if self.numbers is None else self.numbers[index]))


class Row(NamedTuple):
    """A row by its number in the source, from 0; in a message it says where it stands."""

    origin: Origin
    number: int

    def __str__(self) -> str:
        if not self.origin.files:
            return str(self.number)
        return f"{self.number} ({locate(self.origin.files, self.number)})"


class Splits(NamedTuple):
    """Rows to train on, and rows that no client ever sees."""

    train: "Dataset"
    heldout: "Dataset | None"  # None where the source has none of its own
    origin: Origin = Origin()  # of `train`
    heldout_origin: Origin = Origin("test")


def choose(names: Iterable[str], dataset: object, *, split: str | None) -> tuple[str, str | None]:
    """Returns the names of the split to train on and of its held-out partner, if it has one.

    The partner of `train_sft` is `test_sft`, else `validation_sft` and so on, else `test`.

    Args:
      names: of the splits that there are.
      dataset: what they belong to, for messages.
      split: the one to train on; None where only one can be meant: `train`, or the only one
        that is not for evaluation.

    Raises:
      ValueError: if there is no such split, or none or several that could be meant.
    """
    names = list(names)
    told = f"dataset={dataset} has the splits {', '.join(names)}"
    if split is not None and split not in names:
        raise ValueError(f"split={split}: {told}; choose one of them")
    usual = ["train"] if "train" in names else [name for name in names if not is_held_out(name)]
    if split is None and len(usual) != 1:
        which = "none of which is for training" if not usual else "several of which could be meant"
        raise ValueError(f"{told}, {which}; choose one by `split`, such as split={names[0]}")
    train = usual[0] if split is None else split
    kind = _kind(train)
    heldout = next(
        (
            name
            for wanted in (kind, [])
            for word in HELD_OUT
            for name in names
            if name != train and word in _words(name) and _kind(name) == wanted
        ),
        None,
    )
    spare = [name for name in names if is_held_out(name) and name != train]
    if heldout is None and spare:
        _LOG.warning(
            "%s; rows of %s are held out, since none of %s belongs to it",
            *(told, train, ", ".join(spare)),
        )
    return train, heldout


def hold_out(splits: Splits, fraction: float, *, seed: int = 0) -> Splits:
    """Returns splits of which both have rows: the source's own, else by setting some aside.

    Args:
      splits: as `load_splits` returns them.
      fraction: share of the rows to set aside where the source has no held-out rows, in
        [0, 1); at least one row, unless it is 0.
      seed: equal seeds set equal rows aside.

    Raises:
      ValueError: if `fraction` is outside [0, 1) or leaves no row to train on.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"heldout_fraction={fraction:g} must be in [0, 1)")
    if splits.heldout is not None or fraction == 0:
        return splits
    from datasets import Dataset

    num_rows = len(splits.train)
    size = max(1, round(fraction * num_rows))
    if size >= num_rows:
        raise ValueError(
            f"`dataset` has {num_rows} rows, and holding out {size} leaves none to train on; "
            "add rows, or hold out fewer"
        )
    parts = splits.train.train_test_split(test_size=size, seed=seed)
    numbers = Dataset.from_dict({"number": np.arange(num_rows)})
    numbers = numbers.train_test_split(test_size=size, seed=seed).with_format("numpy")
    train, test = (
        splits.origin._replace(numbers=numbers[part]["number"][:]) for part in ("train", "test")
    )
    return Splits(
        parts["train"], parts["test"], train, test._replace(split=f"{train.split}, set aside")
    )


def is_held_out(name: str) -> bool:
    """Whether a file's or split's name says that it is for evaluation: `global_test`, `dev`."""
    return any(word in HELD_OUT for word in _words(name))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", name.lower().replace("held_out", "heldout"))


def _kind(name: str) -> list[str]:
    """The words of a split's name that do not say what it is for."""
    return [word for word in _words(name) if word != "train" and word not in HELD_OUT]
