"""What the processes of one run do together: refuse, share a folder, stop, or notice a loss.

One process alone goes through all of it without waiting for anybody.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from fedjax_post.simulate import processes
from fedjax_post.study import folder

_CUT_OFF = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # what collectives say


_TOLD = "the other processes were told"


class PeerError(ValueError):
    """What another process could not do."""


class Stopped(KeyboardInterrupt):
    """All processes were told to stop, and did behind the same round."""


def are_several() -> bool:
    """Returns whether the run has more processes than this one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process shows and writes what is shown and written once."""
    return not are_several() or processes.is_first()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends, in all processes, what any of them cannot do; they wait for each other behind it.

    Nothing within may wait for another process.

    Raises:
      PeerError: if another process failed and this one did not.
    """
    if not are_several():
        yield
        return
    try:
        yield
    except BaseException as error:
        processes.exchanged(str(error) or type(error).__name__)
        error.add_note(_TOLD)
        raise
    for number, said in enumerate(processes.exchanged("")):
        if said:
            raise PeerError(f"process {number}: {said}")


def agreed(directory: Path) -> Path:
    """Returns the folder that the first process has chosen, in all of them."""
    if not are_several():
        return directory
    return Path(processes.exchanged(str(directory))[0])


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Makes and holds a run's folder as long as any of its processes lives; see `folder.held`.

    The first process takes the folder alone, then shares it with the others.

    Raises:
      FileNotFoundError: in a process that does not see it.
    """
    with together():
        if is_first():
            directory.mkdir(parents=True, exist_ok=True)
    with together():
        if not directory.is_dir():
            raise FileNotFoundError(
                f"directory={directory} of process 0 is not there for process "
                f"{jax.process_index()}; give a folder that all processes share"
            )
    alone, shared = fcntl.LOCK_EX, fcntl.LOCK_SH
    locks: tuple[int | None, ...] = (alone,)
    if are_several():
        locks = (alone, shared, None) if is_first() else (None, None, shared)
    with folder.held(directory, locks=locks, agreed=together):
        yield


def should_stop(round: int) -> bool:
    """Returns whether a run that was told to stop ends behind this round, in all processes."""
    if not (jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service):  # type: ignore[attr-defined]
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(round)


def cut_off(error: BaseException) -> str:
    """Returns what tells that another process is gone; empty if the error is this one's own."""
    first = str(error).partition("\n")[0]
    return first if are_several() and any(word in first for word in _CUT_OFF) else ""


def is_told(error: BaseException) -> bool:
    """Returns whether the error ends all processes, each in its own time."""
    return isinstance(error, (PeerError, Stopped)) or _TOLD in getattr(error, "__notes__", ())


def leave(code: int) -> int:
    """Ends this process at once where others may never come to the end that jax waits for.

    Returns:
      The code, where there are no others.
    """
    if not jax.distributed.is_initialized():
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
