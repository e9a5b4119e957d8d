"""Coordination of the processes of one run: errors, the shared folder, stopping, and lost peers.

With a single process nothing here waits.
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

# Words in errors of collective operations that have lost a process
_CUT_OFF = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_REPORTED = "the other processes were told"  # note on errors that all processes know of


class PeerError(ValueError):
    """An error that another process met."""


class Stopped(KeyboardInterrupt):
    """All processes were asked to stop, and stopped after the same round."""


def are_several() -> bool:
    """Returns whether the run has more processes than this one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process prints and writes what all processes have in common."""
    return not are_several() or processes.is_first()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Returns a context in which an error of one process ends all of them.

    At its end all processes wait for each other. Nothing inside may wait for another process.

    Raises:
      PeerError: if another process failed and this one did not.
    """
    if not are_several():
        yield
        return
    try:
        yield
    except BaseException as error:
        processes.exchange(str(error) or type(error).__name__)
        error.add_note(_REPORTED)
        raise
    for number, message in enumerate(processes.exchange("")):
        if message:
            raise PeerError(f"process {number}: {message}")


def agree_on(directory: Path) -> Path:
    """Returns the folder that the first process has chosen."""
    if not are_several():
        return directory
    return Path(processes.exchange(str(directory))[0])


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Creates a run's folder, and holds its lock while any of its processes runs.

    The first process takes an exclusive lock, then shares it with the others; see `folder.hold`.

    Raises:
      FileNotFoundError: in a process that does not see the folder.
    """
    with together():
        if is_first():
            directory.mkdir(parents=True, exist_ok=True)
    with together():
        if not directory.is_dir():
            raise FileNotFoundError(
                f"directory={directory} of process 0 does not exist for process "
                f"{jax.process_index()}; give a folder that all processes share"
            )
    alone, shared = fcntl.LOCK_EX, fcntl.LOCK_SH
    locks: tuple[int | None, ...] = (alone,)
    if are_several():
        locks = (alone, shared, None) if is_first() else (None, None, shared)
    with folder.hold(directory, locks=locks, agreed=together):
        yield


def should_stop(round: int) -> bool:
    """Returns whether a run that was asked to stop ends after this round, in all processes."""
    if not (jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service):  # type: ignore[attr-defined]
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(round)


def lost_peer(error: BaseException) -> str:
    """Returns the message of an error caused by a lost process; "" for any other error."""
    first = str(error).partition("\n")[0]
    return first if are_several() and any(word in first for word in _CUT_OFF) else ""


def is_shared_error(error: BaseException) -> bool:
    """Returns whether all processes know of the error, and so end by themselves."""
    return isinstance(error, (PeerError, Stopped)) or _REPORTED in getattr(error, "__notes__", ())


def leave(code: int) -> int:
    """Ends this process at once with an exit code, without waiting for other processes.

    At a normal exit jax waits for all of them, and some may have stopped already. Returns the
    code if `jax.distributed` is not in use.
    """
    if not jax.distributed.is_initialized():
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
