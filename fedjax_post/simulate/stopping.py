"""Ctrl-C and SIGTERM: a run ends where nothing is lost, and says that it will.

Python raises KeyboardInterrupt wherever it stands. Within a callback of jax it is ignored and
the program goes on; within a checkpoint it tears that checkpoint. Here a signal is noted while
a round is under way, and raised as `Interrupted` between two chunks of clients, or between two
calls of a hosted model. A second one is not noted: it ends a program at once, and a notebook's
cell as Python always does.

`catching` is for programs. `run` and `sweep` use `deferred` by themselves, in a notebook too.
Signals reach the main thread alone; in any other thread all of this does nothing.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

_AGAIN = 0.02  # seconds: an interrupt that a callback ignored is raised again
_SAID = b"""
stopping after the chunk of clients, evaluation or checkpoint under way; Ctrl-C again leaves at once
"""


class Interrupted(KeyboardInterrupt):
    """A signal that asked the program to stop."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _Handler:
    """Notes the first signal, and raises it at once or at the next `check`.

    Args:
      second: signal -> what handles it from the first one on.
      hook: of `sys`, for what else a callback raises.
    """

    def __init__(self, second: Mapping[int, Any], hook: Callable = sys.unraisablehook):
        self.deferred = False
        self._second, self._hook = second, hook
        self._waiting: int | None = None

    def __call__(self, signum: int, frame: object) -> None:
        del frame
        for each, handler in self._second.items():
            signal.signal(each, handler)
        self._waiting = signum
        if not self.deferred:
            self.check()
        # Not by `print`: the signal may have come in the middle of another one.
        with contextlib.suppress(OSError):
            os.write(2, _SAID)

    def check(self) -> None:
        """Raises what is noted."""
        if self._waiting is not None:
            signum, self._waiting = self._waiting, None
            raise Interrupted(signum)

    def ignored(self, unraisable: Any) -> None:
        """Notes an interrupt again that was raised within a callback, where it counts for nothing.

        It goes in place of `sys.unraisablehook`, and is itself such a callback.
        """
        if isinstance(unraisable.exc_value, Interrupted):
            self._waiting = unraisable.exc_value.signum
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._hook(unraisable)

    def again(self, signum: int, frame: object) -> None:
        """Raises what is noted, unless it is deferred by now; a handler of SIGALRM."""
        del signum, frame
        if not self.deferred:
            self.check()


_handler: ContextVar[_Handler | None] = ContextVar("_handler", default=None)


@contextlib.contextmanager
def catching() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM raises `Interrupted`; the next one kills the process.

    For a whole program, in its main thread. What was muted, as in a job in the background of a
    script, stays so. Within another `catching` it does nothing.
    """
    if _handler.get() is not None or not _is_main():
        yield
        return
    stops = [
        each
        for each in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(each) is not signal.SIG_IGN
    ]
    hook = sys.unraisablehook
    handler = _Handler(dict.fromkeys(stops, signal.SIG_DFL), hook)
    before: dict[int, Any] = {each: signal.signal(each, handler) for each in stops}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, handler.again)
    sys.unraisablehook = handler.ignored
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for each, handled in before.items():
            signal.signal(each, handled)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, the first signal waits for `check` or the end.

    Without `catching` that is Ctrl-C alone, and only where Python's own handler has it.
    """
    handler = _handler.get()
    if handler is not None:
        with _set(handler, deferred=True):
            yield
        return
    usual = signal.default_int_handler
    if not _is_main() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    handler = _Handler({signal.SIGINT: usual})
    token = _handler.set(handler)
    signal.signal(signal.SIGINT, handler)
    try:
        with _set(handler, deferred=True):
            yield
    finally:
        signal.signal(signal.SIGINT, usual)
        _handler.reset(token)


def check() -> None:
    """Raises `Interrupted` if a signal waits for it; a place where nothing is lost."""
    handler = _handler.get()
    if handler is not None:
        handler.check()


@contextlib.contextmanager
def _set(handler: _Handler, *, deferred: bool) -> Iterator[None]:
    before, handler.deferred = handler.deferred, deferred
    try:
        yield
    finally:
        handler.deferred = before
    if not before:
        handler.check()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
