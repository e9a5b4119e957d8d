"""Who holds what: a partition of a table's rows over clients, as two arrays."""

from typing import NamedTuple

import numpy as np


class Partition(NamedTuple):
    """Rows of client k: `indices[offsets[k] : offsets[k + 1]]`, ascending.

    Two flat arrays and nothing else, so that a population of a million clients
    costs 8 bytes a client and 8 bytes a row.
    """

    offsets: np.ndarray  # [N + 1], int64, from 0 to num_rows, ascending
    indices: np.ndarray  # [num_rows], int64, each row of the table at most once
