"""The population: how many clients there are, and which rows each of them holds."""

import logging
from typing import NamedTuple

from fedjax_post.data.apart import num_apart
from fedjax_post.data.builtin.tasks import NUM_CLIENTS
from fedjax_post.data.columns import Columns
from fedjax_post.data.rules import RULES, Rule
from fedjax_post.data.source import BUILTIN

_LOG = logging.getLogger(__name__)
_MOST_CLIENTS, _FEWEST_ROWS = 16, 8  # default number of clients for rows without clients


class Population(NamedTuple):
    """How rows are divided among clients, and how many are held out."""

    # a rule, or the name of one with its usual settings, see `rules`; None: natural where there is
    # a column of clients, otherwise iid
    partition: Rule | str | None = None
    # None: all natural clients; if rows name no clients, at most 16 of at least 8 rows each
    num_clients: int | None = None  # of natural clients the first ones are taken
    heldout_fraction: float = 0.05  # used where the source has no held-out rows
    heldout_clients: float = 0.0  # share of the clients that never train, see `apart`
    max_examples: int = 0  # rows to train on, chosen at random; 0: all that are not held out
    seed: int = 0  # for the partition, the chosen and held-out rows, and the built-in tasks

    @property
    def rule(self) -> Rule | None:
        """The rule of the partition; None if it depends on the columns.

        Raises:
          ValueError: for an unknown name.
        """
        if not isinstance(self.partition, str):
            return self.partition
        if self.partition not in RULES:
            raise ValueError(
                f"partition={self.partition} is unknown; use one of {', '.join(RULES)}"
            )
        return RULES[self.partition]()


def count_clients(dataset: object, population: Population) -> int | None:
    """Returns the number of clients that train, if it is known before any row is read, or None."""
    found = None
    if population.rule is not None and population.rule.needs_number:
        found = population.num_clients
    elif dataset in BUILTIN:
        found = population.num_clients or NUM_CLIENTS
    return None if found is None else found - num_apart(found, population.heldout_clients)


def settle(population: Population, columns: Columns, *, num_rows: int) -> Population:
    """Returns a population whose rule is chosen.

    Args:
      population: if it has no partition, rows without a column of clients are divided evenly.
      columns: the column of each role.
      num_rows: number of rows to train on.
    """
    if population.partition is not None:
        return population._replace(partition=population.rule)
    if columns.client is not None:
        return population._replace(partition=RULES["natural"]())
    num_clients = population.num_clients or max(1, min(_MOST_CLIENTS, num_rows // _FEWEST_ROWS))
    _LOG.warning(
        "no column names clients: the rows are divided evenly among %d (partition=iid); to choose "
        "otherwise, give the column's name (client_column), another partition, or num_clients",
        num_clients,
    )
    return population._replace(partition=RULES["iid"](), num_clients=num_clients)
