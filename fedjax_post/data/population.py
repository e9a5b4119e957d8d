"""The population: how many clients there are, and which rows each of them holds."""

import logging
from typing import NamedTuple

from fedjax_post.data.builtin.tasks import NUM_CLIENTS
from fedjax_post.data.columns import Columns
from fedjax_post.data.partition import Partition, dirichlet, iid, natural
from fedjax_post.data.source import BUILTIN
from fedjax_post.data.table import TokenTable

_LOG = logging.getLogger(__name__)
PARTITIONS = ("natural", "iid", "dirichlet")
_MOST_CLIENTS, _FEWEST_ROWS = 16, 8  # default number of clients for rows without clients


class Population(NamedTuple):
    """How rows are divided among clients, and how many are held out."""

    # one of PARTITIONS; None: natural where there is a column of clients, otherwise iid
    partition: str | None = None
    # None: all natural clients; if rows name no clients, at most 16 of at least 8 rows each
    num_clients: int | None = None  # of natural clients the first ones are taken
    alpha: float = 0.3  # concentration for `dirichlet`; smaller values give more skew
    heldout_fraction: float = 0.05  # used where the source has no held-out rows
    seed: int = 0  # for the partition, the held-out rows and the built-in tasks


def count_clients(dataset: object, population: Population) -> int | None:
    """Returns the number of clients if it is known before any row is read, otherwise None."""
    if population.partition in ("iid", "dirichlet"):
        return population.num_clients
    return (population.num_clients or NUM_CLIENTS) if dataset in BUILTIN else None


def settle(population: Population, columns: Columns, *, num_rows: int) -> Population:
    """Returns a population whose partition is chosen.

    Args:
      population: if it has no partition, rows without a column of clients are divided evenly.
      columns: the column of each role.
      num_rows: number of rows to train on.
    """
    if population.partition is not None:
        return population
    if columns.client is not None:
        return population._replace(partition="natural")
    num_clients = population.num_clients or max(1, min(_MOST_CLIENTS, num_rows // _FEWEST_ROWS))
    _LOG.warning(
        "no column names clients: the rows are divided evenly among %d (partition=iid); to choose "
        "otherwise, give the column's name (client_column), another partition, or num_clients",
        num_clients,
    )
    return population._replace(partition="iid", num_clients=num_clients)


def share_out(table: TokenTable, population: Population) -> tuple[Partition, tuple[str, ...]]:
    """Returns the partition of the rows among clients, and the names of natural clients.

    Args:
      table: the rows to train on, with the column that the partition needs.
      population: as `settle` returns it.

    Raises:
      ValueError: if so many clients are not possible, or their number is missing.
    """
    num_clients, seed, num_rows = population.num_clients, population.seed, len(table.length)
    if population.partition == "natural":
        assert table.client is not None  # checked when the columns were chosen
        partition, names = natural(table.client)
        if num_clients is None:
            return partition, names
        if not 1 <= num_clients <= len(names):
            raise ValueError(
                f"num_clients={num_clients}, but partition=natural finds {len(names)}; "
                "use at most that many, or another `partition`"
            )
        offsets = partition.offsets[: num_clients + 1]
        return Partition(offsets, partition.indices[: offsets[-1]]), names[:num_clients]
    if num_clients is None:
        raise ValueError(f"partition={population.partition} needs `num_clients`; give it")
    if population.partition == "iid":
        partition = iid(num_rows, num_clients, seed=seed)
    else:
        assert table.label is not None
        partition = dirichlet(table.label, num_clients, alpha=population.alpha, seed=seed)
    return partition, ()
