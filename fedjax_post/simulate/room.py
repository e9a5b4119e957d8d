"""A full disk: one error for it, whichever library was writing."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
_WORDS = tuple(os.strerror(number) for number in _FULL)


def is_full(error: BaseException | None) -> bool:
    """Returns whether an error, or one that caused it, means that a disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL:
            return True
        if any(word in str(error) for word in _WORDS):  # errors of libraries in other languages
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def room_in(directory: Path) -> Iterator[None]:
    """Returns a context in which every error of a full disk becomes one that names the folder.

    Raises:
      OSError: in place of the library's error.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise OSError(
            errno.ENOSPC,
            "no room on the disk for what this run writes; free some and start it again, or resume "
            "it: everything up to the last checkpoint is saved",
            str(directory),
        ) from error
