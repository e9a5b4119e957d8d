"""Preference pairs: two responses to one prompt, the preferred one first.

A data set of pairs is tokenised as two tables with the same prompts row by row. Batches are
`{"tokens", "loss_mask"}` with leaves `[K_max, B, 2, L]`; otherwise as for `TokenClients`.
"""

import copy
import dataclasses
from typing import Any

import jax
import numpy as np

from fedjax_post.core.algorithm import ClientData
from fedjax_post.data.batches import TokenClients
from fedjax_post.data.columns import Columns, join_names, match_columns
from fedjax_post.data.fingerprint import Fingerprint
from fedjax_post.data.load import (
    Loaded,
    Population,
    Text,
    as_splits,
    assemble,
    columns_for_partition,
)
from fedjax_post.data.messages import is_chat
from fedjax_post.data.partition import Partition
from fedjax_post.data.table import TokenTable


@dataclasses.dataclass(frozen=True)
class PairClients:
    """Clients that hold preference pairs.

    Attributes:
      preferred: the clients, with the preferred responses.
      rejected: a table of the same rows with the rejected responses, of the same number of rows
        and `max_length`.

    Raises:
      ValueError: if the two tables differ in shape.
    """

    preferred: TokenClients
    rejected: TokenTable

    def __post_init__(self):
        one, other = self.table, self.rejected
        if len(one.length) != len(other.length) or one.max_length != other.max_length:
            raise ValueError(
                f"pairs need two tables of the same shape, got {len(one.length)} rows of "
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
        """Returns a hash of the clients and of both responses of each row."""
        found = Fingerprint(self.preferred.fingerprint())
        found.add_table(self.rejected)
        return found.hexdigest()

    def num_steps(self, client_id: int) -> int:
        """Returns the number of steps of the client's visit."""
        return self.preferred.num_steps(client_id)

    def visit(self, client_id: int, rng: np.random.Generator) -> ClientData:
        """Returns batches of pairs; `num_tokens` counts pairs, since losses are means over them."""
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
    """Returns clients of preference pairs and held-out pairs; `load_clients` for pairs.

    A pair is kept if both of its responses begin within the length. Turns that both responses
    begin with belong to the prompt; answers after these turns are learned.

    | prompt | responses |
    | --- | --- |
    | a text, or turns | texts, turns, or whole chats that contain the prompt |
    | the turns in the column of messages (`conversations`) | one turn each |
    | no such column | whole chats |

    Args:
      dataset: as for `load_clients`.
      tokenizer: as for `load_clients`.
      text: as for `load_clients`. The column of responses has the preferred ones; if none is
        named, it is `chosen` where that column exists. Pairs cannot be packed.
      population: as for `load_clients`.
      rejected: the column of rejected responses, of the same kind as the preferred ones.
      split: as for `load_clients`.
      **visits: `batch_size`, and `local_steps` or `local_epochs`.

    Raises:
      ValueError: as `load_clients`, and if there is no column of rejected responses.
    """
    if text.pack_length:
        raise ValueError(f"pack_length={text.pack_length}: pairs cannot be packed; leave it out")
    if text.response_words:
        raise ValueError(
            "`response_words` would give both responses of a pair the same word; leave it "
            "out, and choose columns by `response_column` and `rejected_column`"
        )
    splits = as_splits(dataset, population, split=split)
    columns = _find_pair_columns(splits.train, text.columns, rejected)
    columns = columns_for_partition(columns, splits, population)
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
    """Returns the columns of pairs: with a prompt, with turns before the responses, or neither."""
    names = rows.column_names
    if rejected not in names:
        raise ValueError(
            f"rejected_column={rejected}: no such column; there are {join_names(names)}"
        )
    usual = "chosen" if "chosen" in names else None
    found = match_columns(names, wanted._replace(response=wanted.response or usual))
    if found.response is None:
        raise ValueError(
            f"no column of preferred responses was found; there are {join_names(names)}: choose "
            "one by `response_column`"
        )
    # All rows are searched, since the first may be empty; empty rows are reported later by number.
    sample = next((x for name in (found.response, rejected) for x in rows[name] if x), None)
    if isinstance(sample, dict):
        if found.messages is None:
            raise ValueError(
                f"columns {found.response} and {rejected} hold one turn each, and no column has "
                "the turns before it; choose one by `messages_column`"
            )
        return found._replace(prompt=None, context=None)
    if is_chat(sample) and wanted.prompt is None and wanted.messages is not None:
        return found._replace(prompt=None, context=None)
    if found.prompt is None and not is_chat(sample):
        raise ValueError(
            f"no prompt column was found beside {found.response} and {rejected}, which are texts; "
            "choose one by `prompt_column`; if the texts contain the prompt, write the prompt into "
            "a column named prompt, or write both texts as lists of turns"
        )
    return found._replace(messages=None)
