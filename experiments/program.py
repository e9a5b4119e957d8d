"""What every program does around its work: exit codes, one-line refusals, and how to go on."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

# transformers would announce that it found no PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax

from experiments import process
from experiments.flags import in_flags
from fedjax_post.core.access import AccessError
from fedjax_post.openness.ledger import DisclosureError
from fedjax_post.study import Job, peers

_REFUSALS = (ValueError, OSError, AccessError, ImportError, DisclosureError)
_FULL = "the device's memory does not hold a chunk of clients; give --remat or a lower --chunk_size"


def run(work: Callable[[], int]) -> int:
    """Returns the exit code of a program's work: 2 and one line for input that will not do."""
    try:
        process.prepare()
        return work()
    except TimeoutError as error:
        return peers.leave(refuse(str(error)))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with its --output_dir goes on", file=sys.stderr)
        return peers.leave(130)
    except _REFUSALS as error:
        return refuse(str(error))


def held(job: Job, work: Callable[[], int], *, again: Sequence[str]) -> int:
    """Returns the exit code of a run; says what ended it early, and how it goes on.

    Args:
      job: the run.
      work: carries it out.
      again: flags that its continuation needs beside `--resume`.
    """
    try:
        return work()
    except (BlockingIOError, peers.PeerError) as error:
        return refuse(str(error))
    except (KeyboardInterrupt, Exception) as error:
        return _stopped(error, job, again)


def refuse(message: str) -> int:
    """Prints why a program does nothing, in the words of the command line; returns 2."""
    print(f"error: {in_flags(message)}", file=sys.stderr)
    return 2


def _stopped(error: BaseException, job: Job, again: Sequence[str]) -> int:
    interrupted = isinstance(error, KeyboardInterrupt)
    lost, full = peers.cut_off(error), _is_full(error)
    if not (interrupted or lost or full or isinstance(error, OSError | peers.PeerError)):
        if not peers.are_several():
            raise error
        traceback.print_exception(error)
    why = "interrupted" if interrupted else f"error: {error}"
    why = f"error: another process has ended ({lost})" if lost else why
    why = f"error: {_FULL} ({str(error).splitlines()[0]})" if full else why
    given = " ".join(["--resume", *again])
    command = f"python -m experiments.train --output_dir={shlex.quote(str(job.directory))} {given}"
    print(f"\n{why}; to continue: {command}", file=sys.stderr)
    code = 130 if interrupted else 1
    return code if peers.is_told(error) else peers.leave(code)


def _is_full(error: BaseException) -> bool:
    """Returns whether a device had no memory left."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
