"""Clients with different LoRA ranks."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from fedjax_post.core.algorithm import ClientData
from fedjax_post.data.clients import Clients, fingerprint_of, in_lanes
from fedjax_post.data.fingerprint import Fingerprint


@dataclasses.dataclass(frozen=True)
class RankedClients:
    """A population whose clients get LoRA ranks in turn: client k has `ranks[k % len(ranks)]`.

    Attributes:
      clients: the population.
      ranks: ranks of the clients' adapters, each from 1 to the rank of the federation.

    Raises:
      ValueError: if `ranks` is empty, or for a rank below 1.
    """

    clients: Clients
    ranks: Sequence[int]

    def __post_init__(self):
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"`client_ranks` must hold ranks of at least 1, got {self.ranks}")

    def __len__(self) -> int:
        return len(self.clients)

    def visit(self, client_id: int, rng: np.random.Generator) -> ClientData:
        """Returns the client's visit with its rank."""
        rank = np.int32(self.ranks[client_id % len(self.ranks)])
        return self.clients.visit(client_id, rng)._replace(rank=rank)

    def lanes(
        self,
        client_ids: np.ndarray,
        rng_of: Callable[[int], np.random.Generator],
        *,
        longest: int | None = None,
    ) -> ClientData:
        """Returns visits side by side, with their ranks; see `clients.in_lanes`.

        Args:
          client_ids: `[lanes]` int, followed by -1 for padding lanes.
          rng_of: client id -> its generator.
          longest: steps of the longest of these visits; None for the population's longest.
        """
        ranks = np.array(self.ranks, np.int32)[client_ids % len(self.ranks)]
        data = in_lanes(self.clients, client_ids, rng_of, longest=longest)
        return data._replace(rank=ranks)

    def fingerprint(self) -> str:
        """Returns a hash of the clients and of their ranks."""
        return Fingerprint(fingerprint_of(self.clients), tuple(self.ranks)).hexdigest()

    def num_steps(self, client_id: int) -> int:
        """Returns the approximate number of steps of a visit."""
        return self.clients.num_steps(client_id)
