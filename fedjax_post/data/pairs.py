"""Pairs of responses to one question, the preferred one first: clients, and held-out rows.

A data set of pairs is tokenised as two tables, row by row the same questions. Batches are
`{"tokens", "loss_mask"}` with leaves `[K_max, B, 2, L]`; all else is as for `TokenClients`.
"""

import copy
import dataclasses
from typing import Any

import jax
import numpy as np

from fedjax_post.core.algorithm import ClientData
from fedjax_post.data.batches import TokenClients
from fedjax_post.data.columns import Columns, listed, match_columns
from fedjax_post.data.fingerprint import Fingerprint
from fedjax_post.data.load import Loaded, Population, Text, as_splits, assemble, partitioned
from fedjax_post.data.messages import is_chat
from fedjax_post.data.partition import Partition
from fedjax_post.data.table import TokenTable


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
    split: str | None = None,
    **visits: Any,
) -> Loaded:
    """Returns clients of pairs and held-out pairs, as `load_clients` does of rows.

    A pair is kept if both of its responses begin within the length. The turns that two responses
    both begin with are their prompt; of the rest, the answers are learned.

    | prompt | responses |
    | --- | --- |
    | a text, or turns | texts, turns, or whole chats that hold the prompt |
    | the turns of the column of messages (`conversations`) | a turn each |
    | no such column | whole chats |

    Args:
      dataset: as in `load_clients`.
      tokenizer: as in `load_clients`.
      text: as in `load_clients`. The column of responses holds what is preferred; where none
        is named it is `chosen`, if there is one. Rows are not packed.
      population: as in `load_clients`.
      rejected: the column of what is not preferred, of the same kind.
      split: as in `load_clients`.
      **visits: `batch_size`, and `local_steps` or `local_epochs`.

    Raises:
      ValueError: as `load_clients`, and without a column of what is not preferred.
    """
    if text.pack_length:
        raise ValueError(f"pack_length={text.pack_length}: pairs are not packed; leave it out")
    if text.response_words:
        raise ValueError(
            "`response_words` would give both responses of a pair the word of its label; leave it "
            "out, and choose columns by `response_column` and `rejected_column`"
        )
    splits = as_splits(dataset, population, split=split)
    columns = _find_pair_columns(splits.train, text.columns, rejected)
    columns = partitioned(columns, splits, population)
    loaded, other = assemble(
        splits,
        tokenizer,
        columns=columns,
        text=text,
        population=population,
        schedule=visits,
        rejected=rejected,
    )
    assert other is not None
    report = loaded.report | {
        "rejected_column": rejected,
        "rejected_truncated": other.fit.num_truncated,
    }
    return loaded._replace(clients=PairClients(loaded.clients, other), report=report)


def _find_pair_columns(rows: Any, wanted: Columns, rejected: str) -> Columns:
    """Returns the columns of pairs: a prompt, turns before the responses, or neither for chats."""
    names = rows.column_names
    if rejected not in names:
        raise ValueError(f"rejected_column={rejected}: no such column; there are {listed(names)}")
    usual = "chosen" if "chosen" in names else None
    found = match_columns(names, wanted._replace(response=wanted.response or usual))
    if found.response is None:
        raise ValueError(
            f"no column of preferred responses was found; there are {listed(names)}: choose one "
            "by `response_column`"
        )
    # By all rows, since the first may be empty: what that means is said of it by its number.
    held = next((x for name in (found.response, rejected) for x in rows[name] if x), None)
    if isinstance(held, dict):
        if found.messages is None:
            raise ValueError(
                f"columns {found.response} and {rejected} hold a turn each, and no column has "
                "the turns before it; choose one by `messages_column`"
            )
        return found._replace(prompt=None, context=None)
    if is_chat(held) and wanted.prompt is None and wanted.messages is not None:
        return found._replace(prompt=None, context=None)
    if found.prompt is None and not is_chat(held):
        raise ValueError(
            f"no prompt column was found beside {found.response} and {rejected}, which are texts; "
            "choose one by `prompt_column`, or, where the texts hold the prompt, write it into a "
            "column prompt or both as lists of turns"
        )
    return found._replace(messages=None)
