"""Converts the columns that a run uses to text, and checks that every file has them."""

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedjax_post.data.columns import Columns
from fedjax_post.data.files import column_names
from fedjax_post.data.splits import Origin, Splits
from fedjax_post.data.typed import as_text

if TYPE_CHECKING:
    from datasets import Dataset

_NEEDED = ("prompt", "response", "messages", "label")  # columns of other roles may be empty


def read_used(
    splits: Splits, columns: Columns, *, template: str, others: Sequence[str] = ()
) -> Splits:
    """Returns splits in which the columns that are used are converted to text.

    Args:
      splits: with columns of any types, and rows in any order.
      columns: the column of each role.
      template: a format string may name further columns.
      others: further columns that are used.

    Raises:
      ValueError: for a value that is not text, see `as_text`, and for a file that lacks a column
        which other files of the data set have.
    """
    used = {*others, *(name for name in columns if name is not None)}
    if "{" in template:
        try:
            used |= {name.split(".")[0].split("[")[0] for name in _names_in(template)}
        except ValueError as error:
            raise ValueError(f"template={template!r} is not a format string: {error}") from None
    needed = {*others, *(getattr(columns, role) for role in _NEEDED)}
    flat = [name for name in (columns.label, columns.client) if name is not None]

    def read(rows: "Dataset", origin: Origin) -> "Dataset":
        names = [name for name in rows.column_names if name in used]
        _check_files(rows, origin, [name for name in names if name in needed])
        return as_text(rows, names, flat=flat, row_fn=origin.row)

    train, heldout = splits.train, splits.heldout
    return splits._replace(
        train=read(train, splits.origin),
        heldout=None if heldout is None else read(heldout, splits.heldout_origin),
    )


def _names_in(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def _check_files(rows: "Dataset", origin: Origin, needed: Sequence[str]) -> None:
    """Raises if files of one data set do not have the same names for needed columns."""
    if len(origin.files) < 2 or not any(rows.data.column(name).null_count for name in needed):
        return
    names = [column_names(file) for file in origin.files]
    for file, found in zip(origin.files, names, strict=True):
        lacking = [
            name for name in needed if name not in found and any(name in other for other in names)
        ]
        if lacking:
            raise ValueError(
                f"dataset={file.path} has no column {', '.join(lacking)}, which other files beside "
                f"it have; it has {', '.join(found)}: rename them, or remove the file"
            )
