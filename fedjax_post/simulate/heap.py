"""The heap of a CPU: memory that one step frees is the next step's, not the system's."""

import ctypes
import platform

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Keeps memory that is freed with this process; its peak stays what it was.

    XLA takes what a step needs on a CPU in one piece and frees it behind the step. The C
    library gives pieces of over 32 MiB back to the system at once, and every page that the
    next step touches is a fault: 34,000 of them, a quarter of the time, in a step of eight
    clients of the built-in model. Call it once, before the first computation.

    Returns:
      Whether the C library is glibc, and does so now; others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # One heap for all threads, none of it mapped apart, none of it given back
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
    taken = [library.mallopt(name, value) for name, value in settings.items()]
    return all(taken)
