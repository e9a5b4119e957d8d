"""Settings of a benchmark."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """The settings, one for each flag."""

    turns: int = 11  # of each side, counted
    warm_up: int = 2  # turns of each side that are not counted
    tiny: bool = False  # tiny shapes, which only show that it works
    only: str = ""  # a regular expression; only figures whose name it matches are measured
    model: str = "builtin"
    dataset: str | None = None
    tokenizer: str = ""  # folder; `dataset` is then run on random weights, 15 million or more
    max_length: int = 256  # tokens of a row of `dataset`
    pack_length: int = 0  # tokens of a row that examples share; 0: a row each
    cache: Path = Path("~/.cache/fedjax_post/peers").expanduser()
    pythons: Mapping[str, str] = {}  # interpreters of environments that the user made
    fedjax_source: str = ""
    cores: tuple[str, str] = ("", "")  # the core of each side; empty: any
    peak_flops: float = 0.0  # operations per second of the device; 0: looked up


def select(
    measurements: Mapping[str, Callable], settings: Settings
) -> Iterator[tuple[str, Callable]]:
    """Yields the measurements whose name matches `settings.only`."""
    for name, measure in measurements.items():
        if re.search(settings.only, name):
            yield name, measure
