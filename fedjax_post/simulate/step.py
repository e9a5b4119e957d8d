"""`Step`: one step of the server, as the plan of a run sets it out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Step(NamedTuple):
    """One step of the server: the clients whose updates it uses, and numbers for the record."""

    round: int
    began: tuple[tuple[int, np.ndarray], ...] = ()  # (round, ids of clients that began in it)
    awaited: frozenset[int] = frozenset()  # rounds in which clients still at work began
    numbers: Mapping[str, Any] = {}  # for the record
