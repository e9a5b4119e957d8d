"""What secure sums cost on the wire, beside the uploads; the sizes are those of `protocol`.

With n clients in a round, each sends and receives:

| phase | up | down |
| --- | --- | --- |
| keys | two public keys | n ids with two public keys |
| shares | n - 1 ids with sealed shares | the same |
| upload | codes of 4 bytes an entry and of the weight, and the seat | one bit for each client |
| opening | n ids with a share | |
"""

from typing import Any

import jax.numpy as jnp

from fedjax_post.core.algorithm import Added
from fedjax_post.core.wire import pieces

ID = 4
KEYS = 64  # two public keys of X25519
SHARE = 33  # an element of the field of `shamir`
SEALED = 2 * SHARE + 16  # two shares, and the tag of ChaCha20-Poly1305


def protocol_bytes(cohort: Any) -> Added:
    """Returns what one client sends and receives in one round, beside its upload.

    Args:
      cohort: number of clients of the round, () int32.
    """
    return Added(
        down=pieces((ID + KEYS, cohort), (ID + SEALED, cohort - 1), (1, (cohort + 7) // 8)),
        up=pieces((KEYS, jnp.int32(1)), (ID + SEALED, cohort - 1), (ID + SHARE, cohort)),
    )
