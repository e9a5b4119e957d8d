"""A full disk: the same error, whatever was being written and whichever library wrote it."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
_WORDS = tuple(os.strerror(number) for number in _FULL)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that there is no room for a file."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL:
            return True
        if any(word in str(error) for word in _WORDS):  # of libraries in other languages
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def room_in(directory: Path) -> Iterator[None]:
    """Within, what finds no room for a file of a run ends in one error that names its folder.

    Raises:
      OSError: in place of whatever a library raised.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise OSError(
            errno.ENOSPC,
            "no room on the disk for what this run writes; free some and start it again, or resume "
            "it: nothing before the last checkpoint is lost",
            str(directory),
        ) from error
