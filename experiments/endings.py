"""How a program that fails ends: with one line, or with a traceback.

Bad flags, files and fields are reported in one line. An error that passed through a user's own
code is raised again, so that Python prints its traceback.
"""

import signal
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax

from fedjax_post.core.access import AccessError
from fedjax_post.disclosure.ledger import DisclosureError
from fedjax_post.experiments.flags.wording import in_flags

# What bad flags, files and fields raise.
REFUSED = (ValueError, OSError, ImportError, AccessError, DisclosureError)
FULL = "the device's memory does not hold a chunk of clients; give --remat or a lower --chunk_size"
_ROOT = Path(__file__).parent.parent
_OURS = tuple(str(_ROOT / name) for name in ("fedjax_post", "algorithms", "experiments"))


def refuse(error: Exception) -> int:
    """Prints why a program does not run, and returns its exit code, 2.

    Args:
      error: one of `REFUSED`.

    Raises:
      Exception: the error itself, if it passed through a user's own code.
    """
    if passed_own_code(error):
        raise error
    print(f"error: {in_flags(str(error))}", file=sys.stderr)
    return 2


def passed_own_code(error: BaseException) -> bool:
    """Returns whether an error, or one of its causes, passed through a user's own file."""
    return any(_is_own(path) for path in _files_of(error))


def interrupted_code(error: KeyboardInterrupt) -> int:
    """Returns the exit code after Ctrl-C, 130, or after SIGTERM, 143, as shells do."""
    return 128 + getattr(error, "signum", signal.SIGINT)


def is_full(error: BaseException) -> bool:
    """Returns whether a device had no memory left."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _files_of(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame.f_code.co_filename
        error = error.__cause__


def _is_own(path: str) -> bool:
    """Whether a file exists and belongs neither to this project nor to an installed package."""
    places = (*_OURS, *sysconfig.get_paths().values(), *site.getsitepackages())
    places = (*places, site.getusersitepackages())
    return Path(path).is_file() and not any(Path(path).is_relative_to(place) for place in places)
