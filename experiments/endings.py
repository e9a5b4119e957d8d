"""How a program ends that does not come to its end: one line, or a traceback.

Flags, files and fields are refused in one line. An error that passed through a person's own
code is theirs to mend, so that it goes on to Python, which prints where it came from.
"""

import signal
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from fedjax_post.experiments.flags.wording import in_flags

from fedjax_post.core.access import AccessError
from fedjax_post.disclosure.ledger import DisclosureError

# What a flag, a file or a field that will not do raises.
REFUSED = (ValueError, OSError, ImportError, AccessError, DisclosureError)
_ROOT = Path(__file__).parent.parent
_OURS = tuple(str(_ROOT / name) for name in ("fedjax_post", "algorithms", "experiments"))


def refuse(error: Exception) -> int:
    """Prints why a program will not do what it was told, and returns its exit code.

    Args:
      error: of `REFUSED`.

    Raises:
      Exception: the error itself, if it passed through code that is neither ours nor installed.
    """
    if passed_own_code(error):
        raise error
    print(f"error: {in_flags(str(error))}", file=sys.stderr)
    return 2


def passed_own_code(error: BaseException) -> bool:
    """Returns whether an error, or what it was raised from, passed through a person's own file."""
    return any(_is_own(path) for path in _files_of(error))


def interrupted_code(error: KeyboardInterrupt) -> int:
    """Returns the exit code after Ctrl-C, 130, or SIGTERM, 143, as shells have them."""
    return 128 + getattr(error, "signum", signal.SIGINT)


def _files_of(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame.f_code.co_filename
        error = error.__cause__


def _is_own(path: str) -> bool:
    """Whether a file is neither of this project, nor installed, nor made up by a library."""
    places = (*_OURS, *sysconfig.get_paths().values(), *site.getsitepackages())
    places = (*places, site.getusersitepackages())
    return Path(path).is_file() and not any(Path(path).is_relative_to(place) for place in places)
