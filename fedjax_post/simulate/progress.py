"""The progress of a run: a bar in a terminal or a notebook, and lines in a log file."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from fedjax_post.core.engine import State
from fedjax_post.simulate.record import Callback, Record

_SPACING = 30.0  # seconds between two lines in a log file
_SHOWN = ("loss", "reward", "eval_loss", "eval_exact_match", "eval_accuracy", "eval_preference")


def progress(
    rounds: int,
    *,
    start: int = 0,
    file: TextIO | None = None,
    clock_fn: Callable[[], float] = time.monotonic,
) -> Callback:
    """Returns a callback that shows how far a run is, its latest scores, tokens/s and who dropped.

    In a terminal and in a notebook it draws a bar, without colours. Elsewhere, as in a log file,
    it writes a line after the first and the last round, and between them one in 30 seconds.

    Args:
      rounds: total number of rounds.
      start: number of rounds done already.
      file: where to write; by default the standard error.
      clock_fn: returns seconds.
    """
    file = sys.stderr if file is None else file
    if not is_redrawn(file):
        return _lines(rounds, start=start, file=file, clock_fn=clock_fn)
    bar = tqdm(total=rounds, initial=start, unit="round", dynamic_ncols=True, file=file)
    seen = _Seen()

    def show(state: State, record: Record) -> None:
        del state
        seen.add(record)
        bar.set_postfix(seen.told, refresh=False)
        bar.update()
        if _is_last(record, rounds):
            bar.close()

    return show


def is_redrawn(file: TextIO) -> bool:
    """Returns whether a line can be drawn again: in a terminal and in a notebook."""
    return file.isatty() or type(file).__module__.startswith("ipykernel.")


def _lines(rounds: int, *, start: int, file: TextIO, clock_fn: Callable[[], float]) -> Callback:
    began = clock_fn()
    written = None  # when the last line was
    seen = _Seen()

    def show(state: State, record: Record) -> None:
        nonlocal written
        del state
        seen.add(record)
        now, done = clock_fn(), record["round"] + 1
        if written is not None and now - written < _SPACING and not _is_last(record, rounds):
            return
        written = now
        left = (now - began) / (done - start) * (rounds - done)
        told = "  ".join(f"{name} {value}" for name, value in seen.told.items())
        ending = "" if _is_last(record, rounds) else f"  about {_duration(left)} left"
        print(f"round {done}/{rounds}  {told}{ending}", file=file, flush=True)

    return show


class _Seen:
    """What is shown of the rounds so far."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self._visits = self._dropped = 0

    def add(self, record: Record) -> None:
        """Adds a round."""
        self._visits += record.get("cohort", 0)
        self._dropped += len(record.get("dropped", ()))
        self.told |= {
            name: f"{record[name]:.3f}" for name in _SHOWN if record.get(name) is not None
        }
        self.told["tokens/s"] = f"{record['tokens_per_second']:,.0f}"
        if self._dropped:
            self.told["dropped"] = f"{self._dropped:,} of {self._visits:,} visits"


def _is_last(record: Record, rounds: int) -> bool:
    return record["round"] + 1 >= rounds or bool(record.get("stopped"))


def _duration(seconds: float) -> str:
    """Returns a duration in its largest fitting unit.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
