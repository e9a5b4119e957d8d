"""Rows to train on, held-out rows, and where they come from."""

import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedjax_post.data.files import File, locate

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
# Words in the name of a file or split for evaluation, in order of preference.
HELD_OUT = ("test", "heldout", "valid", "validation", "val", "eval", "evaluation", "dev")


class Origin(NamedTuple):
    """Where the rows of a data set come from, for reports and messages."""

    split: str = "train"  # name of the split
    files: tuple[File, ...] = ()  # files with the rows, in this order; empty for other sources
    numbers: np.ndarray | None = None  # [num_rows], numbers of the rows in the source; None: 0, 1..
    held_out: bool = False  # no client trains on them, so that no client needs a row of its own

    def row(self, index: int) -> "Row":
        """Returns the name of a row of the data set, for messages."""
        return Row(self, int(index if self.numbers is None else self.numbers[index]))


class Row(NamedTuple):
    """A row, given by its number in the source, from 0; as text it includes file and line."""

    origin: Origin
    number: int

    def __str__(self) -> str:
        if not self.origin.files:
            return str(self.number)
        return f"{self.number} ({locate(self.origin.files, self.number)})"


class Splits(NamedTuple):
    """Rows to train on, and held-out rows, which no client sees."""

    train: "Dataset"
    heldout: "Dataset | None"  # None where the source has no held-out rows
    origin: Origin = Origin()  # of `train`
    heldout_origin: Origin = Origin("test")  # of `heldout`


def choose(names: Iterable[str], dataset: object, *, split: str | None) -> tuple[str, str | None]:
    """Returns the names of the split to train on and of the matching held-out split, or None.

    For `train_sft` this is `test_sft`, otherwise `validation_sft` and so on, otherwise `test`.

    Args:
      names: names of all splits.
      dataset: the data set of the splits, for messages.
      split: the split to train on; None: `train`, or the only split that is not for evaluation.

    Raises:
      ValueError: if there is no such split, or if `split` is None and the choice is not unique.
    """
    names = list(names)
    listing = f"dataset={dataset} has the splits {', '.join(names)}"
    if split is not None and split not in names:
        raise ValueError(f"split={split}: {listing}; choose one of them")
    usual = ["train"] if "train" in names else [name for name in names if not is_held_out(name)]
    if split is None and len(usual) != 1:
        which = "none of which is for training" if not usual else "several of which are possible"
        raise ValueError(f"{listing}, {which}; choose one by `split`, such as split={names[0]}")
    train = usual[0] if split is None else split
    kind = kind_of(train)
    heldout = next(
        (
            name
            for wanted in (kind, [])
            for word in HELD_OUT
            for name in names
            if name != train and word in _words(name) and kind_of(name) == wanted
        ),
        None,
    )
    spare = [name for name in names if is_held_out(name) and name != train]
    if heldout is None and spare:
        _LOG.warning(
            "%s; rows of %s are held out, since none of %s matches it",
            *(listing, train, ", ".join(spare)),
        )
    return train, heldout


def hold_out(splits: Splits, fraction: float, *, seed: int = 0) -> Splits:
    """Returns splits with held-out rows: those of the source, otherwise rows taken from `train`.

    Args:
      splits: as `load_splits` returns them.
      fraction: share of the rows to hold out where the source has no held-out rows, in
        [0, 1); at least one row is held out, unless it is 0.
      seed: equal seeds hold out the same rows.

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


def limit(splits: Splits, max_examples: int, *, seed: int = 0) -> Splits:
    """Returns splits with at most `max_examples` rows to train on: random ones, in their order.

    Args:
      splits: as `hold_out` returns them, so that the held-out rows do not depend on the limit.
      max_examples: 0 for all rows.
      seed: equal seeds choose the same rows.

    Raises:
      ValueError: if `max_examples` is negative.
    """
    if max_examples < 0:
        raise ValueError(f"max_examples must be at least 1, or 0 for all rows, got {max_examples}")
    num_rows = len(splits.train)
    if not 0 < max_examples < num_rows:
        return splits
    chosen = np.random.default_rng((seed, 4)).choice(num_rows, max_examples, replace=False)
    chosen.sort()
    numbers = chosen if splits.origin.numbers is None else splits.origin.numbers[chosen]
    return splits._replace(
        train=splits.train.select(chosen), origin=splits.origin._replace(numbers=numbers)
    )


def is_held_out(name: str) -> bool:
    """Returns whether a file or split is for evaluation by its name, such as `global_test`."""
    return any(word in HELD_OUT for word in _words(name))


def kind_of(name: str) -> list[str]:
    """Returns the words in the name of a file or split that do not give its purpose.

    >>> kind_of("local_training_3") == kind_of("local_test_3") == ["local", "3"]
    True
    """
    return [word for word in _words(name) if word not in ("train", "training", *HELD_OUT)]


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", name.lower().replace("held_out", "heldout"))
