"""Pairs of responses to one question, the preferred one first: clients, and held-out rows.

A data set of pairs is tokenised as two tables, row by row the same questions. Batches are
`{"tokens", "loss_mask"}` with leaves `[K_max, B, 2, L]`; all else is as for `TokenClients`.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_post.core.algorithm import ClientData
from fedjax_post.data.batches import TokenClients
from fedjax_post.data.fingerprint import Fingerprint
from fedjax_post.data.load import Loaded, Population, Text, as_splits, load_clients
from fedjax_post.data.partition import Partition
from fedjax_post.data.source import Splits, hold_out
from fedjax_post.data.table import TokenTable

_CHAT = " in its chat"  # of a column of last messages


@dataclasses.dataclass(frozen=True)
class PairClients:
    """Clients that hold pairs.

    Attributes:
      preferred: the clients, with the responses that they prefer.
      rejected: the same rows with the other responses, as long as those of `preferred`.

    Raises:
      ValueError: if the tables are not of one shape.
    """

    preferred: TokenClients
    rejected: TokenTable

    def __post_init__(self):
        one, other = self.table, self.rejected
        if len(one.length) != len(other.length) or one.max_length != other.max_length:
            raise ValueError(
                f"pairs need two tables of one shape, got {len(one.length)} rows of "
                f"{one.max_length} tokens and {len(other.length)} of {other.max_length}"
            )

    def __len__(self) -> int:
        return len(self.preferred)

    @property
    def table(self) -> TokenTable:
        """The rows with the preferred responses."""
        return self.preferred.table

    @property
    def partition(self) -> Partition:
        """Which rows each client holds."""
        return self.preferred.partition

    def fingerprint(self) -> str:
        """Returns a hash of the clients with both responses of each row."""
        found = Fingerprint(self.preferred.fingerprint())
        found.add_table(self.rejected)
        return found.hexdigest()

    def num_steps(self, client_id: int) -> int:
        """Returns the steps of a visit of the client."""
        return self.preferred.num_steps(client_id)

    def visit(self, client_id: int, rng: np.random.Generator) -> ClientData:
        """Returns batches of pairs; `num_tokens` counts these, since losses are means over them."""
        others = dataclasses.replace(self.preferred, table=self.rejected)
        second = others.visit(client_id, copy.deepcopy(rng))  # the same rows in the same order
        first = self.preferred.visit(client_id, rng)
        pairs = jax.tree.map(lambda *x: np.stack(x, axis=2), first.batches, second.batches)
        is_pair = pairs["loss_mask"].any(axis=-1).all(axis=-1)
        return first._replace(
            batches=pairs,
            num_tokens=np.float32(np.count_nonzero(is_pair)),
            num_read=first.num_read + second.num_read,
            step_size=first.step_size + second.step_size,
        )


def load_pairs(
    dataset: Any,
    tokenizer: Any,
    *,
    text: Text = Text(),  # noqa: B008
    population: Population = Population(),  # noqa: B008
    rejected: str = "rejected",
    **visits: Any,
) -> Loaded:
    """Returns clients of pairs and held-out pairs, as `load_clients` does of rows.

    Args:
      dataset: as in `load_clients`.
      tokenizer: as in `load_clients`.
      text: as in `load_clients`. The column of responses holds what is preferred; where none
        is named it is `chosen`, if there is one. Texts follow a prompt; lists of messages are
        whole chats; a message follows those of the column of messages (`conversations`).
        Rows are not packed.
      population: as in `load_clients`.
      rejected: the column of what is not preferred, of the same kind.
      **visits: `batch_size`, and `local_steps` or `local_epochs`.

    Raises:
      ValueError: as `load_clients`, and without a column of what is not preferred.
    """
    if text.pack_length:
        raise ValueError(f"--pack_length={text.pack_length}: pairs are not packed; leave it out")
    if text.response_words:
        raise ValueError(
            "--response_words would give both responses of a pair the word of its label; leave it "
            "out, and choose columns by --response_column and --rejected_column"
        )
    splits = as_splits(dataset, population)
    splits = hold_out(splits, population.heldout_fraction, seed=population.seed)
    names = splits.train.column_names
    if rejected not in names:
        raise ValueError(
            f"--rejected_column={rejected}: no such column; there are {_listed(splits.train)}"
        )
    chosen = text.columns.response or ("chosen" if "chosen" in names else None)
    if isinstance(splits.train[0][rejected], dict):
        turns = text.columns.messages or "conversations"
        splits = Splits(*(_as_chats(rows, turns, chosen, rejected) for rows in splits))
        chosen, rejected = (f"{name}{_CHAT}" for name in (chosen, rejected))
    role = "messages" if isinstance(splits.train[0][rejected], list) else "response"
    text = text._replace(columns=text.columns._replace(messages=None, response=None))
    sides = []
    for name in (chosen, rejected):
        own = text._replace(columns=text.columns._replace(**{role: name}))
        sides.append(load_clients(splits, tokenizer, text=own, population=population, **visits))
    first, second = sides
    one, two = _as_long(first.clients.table, second.clients.table)
    clients = PairClients(dataclasses.replace(first.clients, table=one), two)
    report = first.report | {"max_length": one.max_length, "rejected_column": rejected}
    heldout, others = first.heldout, second.heldout
    if heldout is not None and others is not None:
        heldout, others = _as_long(heldout, others)
    return Loaded(clients, heldout, first.names, report, others)


def _as_chats(rows: Any, turns: str, *names: str | None) -> Any:
    """Adds columns of whole chats, for columns of last messages."""
    if rows is None:
        return None
    for name in (turns, *names):
        if name not in rows.column_names:
            raise ValueError(
                f"column {name} is missing beside last messages; choose the turns before them by "
                f"--messages_column, and them by --response_column ({_listed(rows)})"
            )
    return rows.map(lambda row: {f"{name}{_CHAT}": [*row[turns], row[name]] for name in names})


def _listed(rows: Any) -> str:
    return ", ".join(sorted(rows.column_names))


def _as_long(*tables: TokenTable) -> Sequence[TokenTable]:
    longest = max(table.max_length for table in tables)
    return [table._replace(max_length=longest) for table in tables]
