"""Lines of JSON between a side and the benchmark: one request in, one answer out.

It uses the standard library only, since it runs in environments that contain only a peer.
"""

import json
import os
import sys
import time


def open_channel():
    """Returns standard output, for answers; all other output then goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def answer(out, **content):
    """Sends one answer."""
    out.write(json.dumps(content) + "\n")
    out.flush()


def ask():
    """Returns the next request; None at the end."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def serve(out, play):
    """Answers every request by `play(request) -> content`, with the seconds that it took."""
    answer(out, ready=True)
    while (request := ask()) is not None:
        began, used = time.perf_counter(), time.process_time()
        content = play(request)
        took = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - used,
        }
        answer(out, **{**took, **content})


def pin(cores):
    """Binds this process, and the threads that it will start, to cores such as "0,1"; "": to none.

    Returns:
      The number of cores, at least 1.
    """
    chosen = {int(core) for core in cores.split(",") if core}
    if chosen and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen)
    return max(1, len(chosen))
