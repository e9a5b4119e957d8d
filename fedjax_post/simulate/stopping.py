"""Ctrl-C and SIGTERM: stops a run at a point where nothing is lost.

Python raises KeyboardInterrupt at any instruction. Inside a callback of jax it is ignored and the
program continues; inside a checkpoint it leaves the checkpoint incomplete. Here a signal during a
round is recorded, and raised as `Interrupted` between two chunks of clients or between two calls
of a hosted model. A second signal is not deferred: it ends a program at once, and in a notebook it
interrupts the cell as usual.

`catch_signals` is for programs. `run` and `sweep` use `defer_signals` themselves, also in a
notebook. Signals reach only the main thread; in other threads these functions have no effect.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

_AGAIN = 0.02  # seconds after which an interrupt that a callback ignored is raised again
_MESSAGE = b"""
stopping after the current chunk of clients, evaluation or checkpoint; Ctrl-C again stops at once
"""


class Interrupted(KeyboardInterrupt):
    """A signal that asked the program to stop."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _Handler:
    """Records the first signal, and raises it at once or at the next `check`.

    Args:
      second: signal -> its handler after the first signal.
      hook: `sys.unraisablehook`, called for other errors in callbacks.
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
        # Not with `print`: the signal may have interrupted another `print`.
        with contextlib.suppress(OSError):
            os.write(2, _MESSAGE)

    def check(self) -> None:
        """Raises the recorded signal, if any."""
        if self._waiting is not None:
            signum, self._waiting = self._waiting, None
            raise Interrupted(signum)

    def on_unraisable(self, unraisable: Any) -> None:
        """Records an interrupt again that was raised in a callback, where Python ignores it.

        It replaces `sys.unraisablehook`, and is itself such a callback.
        """
        if isinstance(unraisable.exc_value, Interrupted):
            self._waiting = unraisable.exc_value.signum
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._hook(unraisable)

    def again(self, signum: int, frame: object) -> None:
        """Handles SIGALRM: raises the recorded signal, unless signals are deferred now."""
        del signum, frame
        if not self.deferred:
            self.check()


_handler: ContextVar[_Handler | None] = ContextVar("_handler", default=None)


@contextlib.contextmanager
def catch_signals() -> Iterator[None]:
    """Returns a context in which the first SIGINT or SIGTERM raises `Interrupted`.

    The next signal kills the process. It is meant for a whole program, in its main thread.
    Signals that were ignored before, as in a script's background job, stay ignored. Inside
    another `catch_signals` it has no effect.
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
    sys.unraisablehook = handler.on_unraisable
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
def defer_signals() -> Iterator[None]:
    """Returns a context in which the first signal is deferred to the next `check` or the end.

    Without `catch_signals`, this covers only Ctrl-C, and only if Python's own handler is installed.
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
    """Raises `Interrupted` if a signal was deferred. Call it where nothing is lost."""
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
