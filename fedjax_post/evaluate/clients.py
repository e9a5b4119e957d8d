"""Scores by client: a table with a line for each client, and models of several clients at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.data.table import take_rows
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.scores import Outcomes, Scores, measure, select
from fedjax_post.evaluate.spread import spreads
from fedjax_post.evaluate.stacked import Stacked

# Which rows of a client are scored: its own held-out rows, held-out rows with its labels, all
# held-out rows, rows that it trains on, or rows of a client that never trains.
ROWS = ("own", "labels", "all", "training", "heldout_client")


class Line(NamedTuple):
    """The scores of a client."""

    client: str  # its name; its number in the data if clients have no names
    id: int | None  # its number in the run; None if it never trains
    examples: int  # rows that are scored, at least 1
    scores: Scores
    counts: Mapping[str, int]  # by score: rows that it does not leave out


class ClientTable(NamedTuple):
    """The scores of several clients, all on the same kind of rows."""

    rows: str  # what is scored of a client, one of ROWS
    num_clients: int  # of which those without scored rows have no line
    lines: tuple[Line, ...]

    def records(self, name: str) -> list[dict[str, Any]]:
        """Returns the lines as records of a file; `name` is that of the table."""
        return [
            {
                "table": name,
                "client": line.client,
                "id": line.id,
                "rows": self.rows,
                "examples": line.examples,
                **line.scores,
            }
            for line in self.lines
        ]

    def summary(self) -> dict[str, Any]:
        """Returns the spread of every score over the clients, for a run's summary."""
        scores, counts = [x.scores for x in self.lines], [x.counts for x in self.lines]
        found = spreads(scores, counts, num_clients=self.num_clients)
        spread = {name: one._asdict() for name, one in found.items()}
        return {"rows": self.rows, "clients": self.num_clients, "scores": spread}


def measure_each(models: Stacked, heldout: HeldOut, rows: Sequence[np.ndarray]) -> list[Outcomes]:
    """Returns the outcomes of each client's model on the client's rows, in their order.

    Equal to `measure` for one client after the other, up to rounding. A batch has at most
    `heldout.batch_size` rows of all clients together, so that memory grows with the number of
    clients only by their states.

    Args:
      models: of C clients, at most `heldout.batch_size`; `owner` is not used.
      heldout: the table and settings; its `rows` are not used.
      rows: `[n_c]` int, row numbers of each client.
    """
    sizes, num_rows = [len(own) for own in rows], len(heldout.table.length)
    # A row that several clients have is repeated. All rows stay, for lengths that are the table's.
    every = np.concatenate([np.arange(num_rows), *rows]).astype(np.int64)
    rejected = heldout.rejected
    together = heldout._replace(
        table=take_rows(heldout.table, every),
        rejected=None if rejected is None else take_rows(rejected, every),
        rows=np.arange(num_rows, len(every)),
        batch_size=heldout.batch_size // len(rows) * len(rows),
    )
    owner = np.repeat(np.arange(len(rows)), sizes)
    owner = np.concatenate([np.zeros(num_rows, np.int64), owner])
    found = measure(models._replace(owner=owner), {}, together)
    places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [select(found, own) for own in places]


def num_lanes(sizes: Sequence[int], *, batch_size: int, at_most: int) -> int:
    """Returns the number of clients that are scored together: as many as fill a batch.

    More would only divide the same rows among smaller products with the clients' adapters.

    Args:
      sizes: number of rows of each client, at least one client.
      batch_size: rows in a batch.
      at_most: largest number, at least 1.

    Example:
      >>> num_lanes([4] * 12, batch_size=32, at_most=32)  # two parts of equal size
      6
    """
    each = max(1, -(-sum(sizes) // len(sizes)))
    most = max(1, min(at_most, batch_size // each))
    return -(-len(sizes) // -(-len(sizes) // most))
