"""What every program does around its work: how it stops, what it refuses, and how it goes on."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

# transformers would announce that it found no PyTorch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
from fedjax_post.experiments import endings, process
from fedjax_post.experiments.flags import in_flags

from fedjax_post.simulate import stopping
from fedjax_post.study import Job, peers
from fedjax_post.study.folder import SPEC

_FULL = "the device's memory does not hold a chunk of clients; give --remat or a lower --chunk_size"


def run(work: Callable[[], int]) -> int:
    """Returns the exit code of a program's work.

    0 or what the work returns; 2 and one line for input that will not do; 130 after Ctrl-C, 143
    after SIGTERM.
    """
    with stopping.catching():
        try:
            process.prepare()
            return work()
        except TimeoutError as error:
            return peers.leave(endings.refuse(error))
        except KeyboardInterrupt as error:
            print("\ninterrupted; the same command with its --output_dir goes on", file=sys.stderr)
            return peers.leave(endings.interrupted_code(error))
        except endings.REFUSED as error:
            return endings.refuse(error)


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
        return endings.refuse(error)
    except (KeyboardInterrupt, Exception) as error:
        return _stopped(error, job, again)


def _stopped(error: BaseException, job: Job, again: Sequence[str]) -> int:
    if not (job.directory / SPEC).exists():  # so that there is nothing to go on with
        raise error
    lost, full = peers.cut_off(error), _is_full(error)
    told = isinstance(error, OSError | peers.PeerError) and not endings.passed_own_code(error)
    if not (isinstance(error, KeyboardInterrupt) or lost or full or told):
        if not peers.are_several():
            raise error
        traceback.print_exception(error)
    code, why = 1, f"error: {in_flags(str(error))}"
    if isinstance(error, KeyboardInterrupt):
        code, why = endings.interrupted_code(error), "interrupted"
    why = f"error: another process has ended ({lost})" if lost else why
    why = f"error: {_FULL} ({str(error).splitlines()[0]})" if full else why
    given = " ".join(["--resume", *map(shlex.quote, again)])
    command = (
        f"python -m {__package__}.train --output_dir={shlex.quote(str(job.directory))} {given}"
    )
    print(f"\n{why}; to continue: {command}", file=sys.stderr)
    return code if peers.is_told(error) else peers.leave(code)


def _is_full(error: BaseException) -> bool:
    """Returns whether a device had no memory left."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
