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
    """Answers every request by `play(request) -> content`, with its time in `seconds`."""
    answer(out, ready=True)
    while (request := ask()) is not None:
        began = time.perf_counter()
        content = play(request)
        answer(out, **{"seconds": time.perf_counter() - began, **content})


def pin(core):
    """Binds this process, and the threads that it will start, to one core; None: no core."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
