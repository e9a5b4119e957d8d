"""What every program does around its work: how it stops, what it refuses, how it continues."""

import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

from fedjax_post.experiments import endings, process
from fedjax_post.experiments.flags import in_flags
from fedjax_post.simulate import stopping
from fedjax_post.study import Job, peers
from fedjax_post.study.folder import SPEC


def run(work: Callable[[], int], *, continues: bool = False) -> int:
    """Returns the exit code of a program's work.

    It is what the work returns; 2 for bad input, which is reported in one line; 130 after
    Ctrl-C, 143 after SIGTERM.

    Args:
      work: does everything.
      continues: whether the same command does the rest after an interruption.
    """
    with stopping.catch_signals():
        try:
            process.prepare()
            return work()
        except TimeoutError as error:
            return peers.leave(endings.refuse(error))
        except KeyboardInterrupt as error:
            how = "; the same command with its --output_dir continues" if continues else ""
            print(f"\ninterrupted{how}", file=sys.stderr)
            return peers.leave(endings.interrupted_code(error))
        except endings.REFUSED as error:
            return endings.refuse(error)


def run_job(job: Job, work: Callable[[], int], *, again: Sequence[str]) -> int:
    """Returns the exit code of a run; prints what ended it early, and how to continue.

    Args:
      job: the run.
      work: carries it out.
      again: flags that are needed to continue, beside `--resume`.
    """
    try:
        return work()
    except (BlockingIOError, peers.PeerError) as error:
        return endings.refuse(error)
    except (KeyboardInterrupt, Exception) as error:
        return _stopped(error, job, again)


def _stopped(error: BaseException, job: Job, again: Sequence[str]) -> int:
    if not (job.directory / SPEC).exists():  # there is nothing to continue
        raise error
    lost, full = peers.lost_peer(error), endings.is_full(error)
    is_known = isinstance(error, OSError | peers.PeerError) and not endings.passed_own_code(error)
    if not (isinstance(error, KeyboardInterrupt) or lost or full or is_known):
        if not peers.are_several():
            raise error
        traceback.print_exception(error)
    code, why = 1, f"error: {in_flags(str(error))}"
    if isinstance(error, KeyboardInterrupt):
        code, why = endings.interrupted_code(error), "interrupted"
    why = f"error: another process has ended ({lost})" if lost else why
    why = f"error: {endings.FULL} ({str(error).splitlines()[0]})" if full else why
    given = " ".join(["--resume", *map(shlex.quote, again)])
    command = (
        f"python -m {__package__}.train --output_dir={shlex.quote(str(job.directory))} {given}"
    )
    print(f"\n{why}; to continue: {command}", file=sys.stderr)
    return code if peers.is_shared_error(error) else peers.leave(code)
