"""The interface between clients and the engine: required and optional methods of a population."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from fedjax_post.core.algorithm import ClientData
from fedjax_post.data.fingerprint import Fingerprint


class Clients(Protocol):
    """A population of clients, each of which can be visited.

    It may also have a method `lanes`, with the arguments of `in_lanes`, if it can prepare several
    visits at a lower cost than one by one; and a method `fingerprint` without arguments, which
    returns a short text that differs between populations whose visits differ.
    """

    def __len__(self) -> int:
        """Returns the number of clients."""

    def visit(self, client_id: int, rng: np.random.Generator) -> ClientData:
        """Returns what one client trains on in one visit.

        Args:
          client_id: in [0, len(self)).
          rng: the only source of randomness; the same state gives the same visit.

        Returns:
          Data with numpy leaves; shapes and dtypes are the same for every client and visit.
        """

    def num_steps(self, client_id: int) -> int:
        """Returns the approximate number of steps of a visit, to group clients of similar size."""


def in_lanes(
    clients: Clients,
    client_ids: np.ndarray,
    rng_of: Callable[[int], np.random.Generator],
    *,
    longest: int | None = None,
) -> ClientData:
    """Returns the visits of some clients side by side; padding lanes take no step.

    Args:
      clients: the population; its method `lanes` is used if it has one.
      client_ids: `[lanes]` int, followed by -1 for padding lanes.
      rng_of: client id -> its generator.
      longest: steps of the longest of these visits, or of other visits whose length they must
        match. `lanes` may cut the steps after it, but only to a few different lengths, since each
        length compiles its own program. None: nothing is cut.

    Returns:
      Data with leaves `[lanes, ...]`.
    """
    lanes: Any = getattr(clients, "lanes", None)
    if lanes is not None:
        return lanes(client_ids, rng_of, longest=longest)
    visits = [clients.visit(i, rng_of(i)) for i in client_ids.tolist() if i >= 0]
    blank = visits[0] if visits else clients.visit(0, rng_of(0))
    idle = {name: np.zeros_like(getattr(blank, name)) for name in ("step_mask", *_COUNTS)}
    visits += [blank._replace(**idle)] * (len(client_ids) - len(visits))
    return jax.tree.map(lambda *x: np.stack(x), *visits)


def fingerprint_of(clients: Clients) -> str:
    """Returns a text that identifies these clients: their `fingerprint`, if they have one.

    Otherwise, a hash of one visit each of the first, the last and some clients between them.
    """
    own: Any = getattr(clients, "fingerprint", None)
    if own is not None:
        return own()
    count = len(clients)
    found = Fingerprint(count)
    for i in sorted({round(k * (count - 1) / (_VISITS - 1)) for k in range(_VISITS)}):
        visit = clients.visit(i, np.random.default_rng(i))
        found.add(clients.num_steps(i), *map(np.asarray, jax.tree.leaves(visit)))
    return found.hexdigest()


def empty_aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an empty array aligned such that jax uses it on a CPU without a copy."""
    dtype = np.dtype(dtype)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    first = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw[first : first + num_bytes].view(dtype).reshape(shape)


_COUNTS = ("num_examples", "num_tokens", "num_read")
_ALIGNMENT = 64  # bytes
_VISITS = 16  # clients hashed in a population without a fingerprint
