"""Which held-out rows clients train on as well."""

import numpy as np

from fedjax_post.data.table import TokenTable, signed_rows

_BLOCK = 2**22  # tokens that are hashed at once


def also_trained(heldout: TokenTable, table: TokenTable) -> np.ndarray:
    """Returns which held-out rows have the tokens of a row of clients, bool `[num_heldout]`.

    The prompt and the responses must be alike, as the model reads them: where both are cut, what
    was cut may differ. Rows are compared by hashes of 64 bits.
    """
    width = max(heldout.max_length, table.max_length)
    factors = np.random.default_rng(0).integers(2**63, size=width + 1, dtype=np.uint64) * 2 + 1
    return np.isin(_hashes(heldout, factors), _hashes(table, factors))


def _hashes(table: TokenTable, factors: np.ndarray) -> np.ndarray:
    found = np.zeros(len(table.length), np.uint64)
    step = max(1, _BLOCK // table.max_length)
    for start in range(0, len(found), step):
        rows = np.arange(start, min(start + step, len(found)))
        tokens = signed_rows(table, rows).astype(np.int64).view(np.uint64)
        found[rows] = tokens @ factors[: table.max_length]
        found[rows] += table.length[rows].astype(np.uint64) * factors[-1]
    return found
