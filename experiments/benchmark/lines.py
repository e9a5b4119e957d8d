"""The results of a benchmark: one line of JSON per figure, with what is needed to repeat it."""

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.study.versions import commit, versions_of

RESULTS = Path(__file__).parent / "results.jsonl"
_PACKAGES = ("fedjax_post", "jax", "jaxlib", "flax", "optax", "numpy")


class Aim(NamedTuple):
    """The bound that a figure should reach."""

    number: float
    at_least: bool = True  # False: at most


class Figure(NamedTuple):
    """One measured number."""

    name: str  # unique within its suite
    value: float
    unit: str  # "ratio", "bytes", "s", ...
    quartiles: tuple[float, float] | None = None  # of repeated measurements
    aim: Aim | None = None
    details: Mapping[str, Any] = {}  # what else was measured: losses, both sides, counts


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    *,
    aim: Aim | None = None,
    **details: Any,
) -> Figure:
    """Returns the median and the quartiles of the quotients of two sides that took turns.

    Args:
      name: of the figure.
      above: one number for each turn.
      below: the other side's numbers, from the same turns.
      aim: the bound that the quotient should reach.
      **details: stored with the figure.

    Raises:
      ValueError: if the two sides took unequal numbers of turns, or none.
    """
    if len(above) != len(below) or not len(above):
        raise ValueError(
            f"{name}: {len(above)} and {len(below)} turns; both sides need the same number"
        )
    quotients = np.divide(above, below)
    low, middle, high = np.percentile(quotients, [25, 50, 75]).tolist()
    details = {"turns": len(quotients), **details}
    return Figure(name, middle, "ratio", (low, high), aim, details)


def is_met(figure: Figure) -> bool | None:
    """Returns whether the interquartile interval reaches the aim; None without an aim.

    For a figure that was measured once, the interval is the value itself.
    """
    if figure.aim is None:
        return None
    low, high = figure.quartiles or (figure.value, figure.value)
    return high >= figure.aim.number if figure.aim.at_least else low <= figure.aim.number


def losses_agree(ours: float, theirs: float, *, tolerance: float) -> bool:
    """Returns whether two sides learned the same.

    Args:
      ours: our loss.
      theirs: the other side's loss.
      tolerance: largest difference, relative to the larger of the two.
    """
    return bool(abs(ours - theirs) <= tolerance * max(abs(ours), abs(theirs)))


def as_line(figure: Figure, *, suite: str, argv: Sequence[str]) -> dict[str, Any]:
    """Returns a figure as a line of the results file.

    Args:
      figure: what was measured.
      suite: to which it belongs.
      argv: flags with which to repeat it; folders of this machine are left out.
    """
    aim = None
    if figure.aim:
        aim = {"number": figure.aim.number, "at_least": figure.aim.at_least}
    return {
        "suite": suite,
        "figure": figure.name,
        "value": _rounded(figure.value),
        "unit": figure.unit,
        "quartiles": [_rounded(x) for x in figure.quartiles] if figure.quartiles else None,
        "aim": aim,
        "met": is_met(figure),
        **{key: _rounded(value) for key, value in figure.details.items()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(RESULTS),
        "versions": versions_of(_PACKAGES),
        "machine": machine(),
        "command": shlex.join(["python", "-m", "experiments.benchmark", *map(_portable, argv)]),
    }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to a results file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a results file, oldest first; none if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text]


def machine() -> dict[str, Any]:
    """Returns a description of this machine."""
    import jax

    devices = jax.devices()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _portable(argument: str) -> str:
    """A flag without the folders of this machine: `--dataset=<rows>` for `--dataset=/a/b/rows`."""
    name, given, value = argument.partition("=")
    if not given or os.sep not in value:
        return argument
    return f"{name}=<{Path(value).name}>"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _rounded(value: Any) -> Any:
    """Floats rounded to six significant digits; other values as they are."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
