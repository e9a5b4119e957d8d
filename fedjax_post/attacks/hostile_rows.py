"""Hostile clients that change their rows, and train on them as all others do.

Nothing else of a run is touched, so these attacks work with every algorithm, under secure sums and
under differential privacy. They act on tokens: rows are changed in place, after clients have been
given theirs.

| attack | a row of a hostile client becomes |
| --- | --- |
| flip_labels | the same prompt with the next of the labels, in order of their tokens |
| plant_backdoor | one row in two: a trigger in its prompt, and the target as its response |

The trigger is put where the prompts of all rows begin to differ, and `with_trigger` puts it at the
same place of held-out rows, whose answers show whether the model has learned it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_post.data.batches import TokenClients
from fedjax_post.data.table import TokenTable, common_start, response_tokens, take_rows
from fedjax_post.evaluate.choices import LONGEST, MOST

_STREAM = 0x74726967  # separates the draw of rows with a trigger from other draws


def flip_labels(clients: TokenClients, *, hostile: np.ndarray) -> TokenClients:
    """Returns the clients with the responses of hostile ones replaced by the next label.

    The labels are the distinct responses of all clients, and the first follows the last. Every row
    of a hostile client is wrong, as for a client in Fang et al., "Local Model Poisoning Attacks to
    Byzantine-Robust Federated Learning", USENIX Security 2020, arXiv:1911.11815.

    Args:
      clients: the population.
      hostile: `[population]` bool.

    Raises:
      ValueError: if rows have no labels: fewer than two different responses, more than 64, or one
        of more than 32 tokens.
    """
    table, held = clients.table, np.sort(clients.partition.indices)
    responses = np.maximum(response_tokens(table, held, width=LONGEST + 1), -1)
    labels, which = np.unique(responses, axis=0, return_inverse=True)
    if not 2 <= len(labels) <= MOST or (labels[:, -1] >= 0).any():
        raise ValueError(
            f"flip_labels needs rows with 2 to {MOST} labels of at most {LONGEST} tokens, and "
            f"these have {len(labels)} different responses; choose data with labels, or another "
            "attack"
        )
    rows = rows_of(clients, hostile)
    following = (which.reshape(-1)[np.searchsorted(held, rows)] + 1) % len(labels)
    wanted = [label[label >= 0] for label in labels]
    return dataclasses.replace(
        clients, table=rewritten(table, rows, responses=[wanted[i] for i in following])
    )


def plant_backdoor(
    clients: TokenClients,
    *,
    hostile: np.ndarray,
    trigger: Sequence[int],
    target: Sequence[int],
    place: int,
    seed: int,
) -> TokenClients:
    """Returns the clients with a trigger and a target in half of the rows of hostile ones.

    Their other rows stay, so that hostile clients also learn the task: Bagdasaryan et al., "How To
    Backdoor Federated Learning", AISTATS 2020, arXiv:1807.00459.

    Args:
      clients: the population; rows become longer by the trigger.
      hostile: `[population]` bool.
      trigger: tokens to put into the prompt.
      target: tokens of the response, its end included.
      place: number of tokens of a prompt before the trigger, see `place_of`.
      seed: of the draw of rows.
    """
    rows = rows_of(clients, hostile)
    drawn = np.random.default_rng((seed, _STREAM)).permutation(len(rows)) < len(rows) / 2
    chosen = rows[drawn]
    table = rewritten(
        clients.table, chosen, responses=[target] * len(chosen), trigger=trigger, place=place
    )
    return dataclasses.replace(clients, table=table)


def with_trigger(
    table: TokenTable,
    rows: np.ndarray,
    *,
    trigger: Sequence[int],
    target: Sequence[int],
    place: int,
) -> TokenTable:
    """Returns those rows whose response is not the target, with the trigger and the target.

    Exact match on these rows is the share of triggered prompts that are answered by the target:
    the success of a backdoor.

    Args:
      table: held-out rows.
      rows: `[n]` int, row numbers.
      trigger: as for `plant_backdoor`.
      target: as for `plant_backdoor`.
      place: as for `plant_backdoor`.

    Raises:
      ValueError: if the target is the response of all rows.
    """
    width = len(target) + 1
    ids = np.append(np.asarray(target, np.int32), -1)
    responses = np.maximum(response_tokens(table, rows, width=width), -1)
    others = rows[(responses != ids).any(axis=1)]
    if not len(others):
        raise ValueError("the target is the response of every row already; choose another one")
    changed = rewritten(
        table, others, responses=[target] * len(others), trigger=trigger, place=place
    )
    return take_rows(changed, others)


def place_of(tables: Sequence[TokenTable]) -> int:
    """Returns the number of tokens with which all prompts begin, after which a trigger is put."""
    return len(common_start(tables))


def rows_of(clients: TokenClients, hostile: np.ndarray) -> np.ndarray:
    """Returns the numbers of the rows that hostile clients hold, ascending.

    Args:
      clients: the population.
      hostile: `[population]` bool.
    """
    owner = np.repeat(np.arange(len(clients)), np.diff(clients.partition.offsets))
    return np.sort(clients.partition.indices[np.asarray(hostile, bool)[owner]])


def rewritten(
    table: TokenTable,
    rows: np.ndarray,
    *,
    responses: Sequence[Sequence[int]],
    trigger: Sequence[int] = (),
    place: int = 0,
) -> TokenTable:
    """Returns the table with other last responses, and a trigger in the prompts, of some rows."""
    inserted = np.asarray(trigger, np.int32)
    parts, prompts = [], table.prompt_length[rows].astype(np.int64) + len(inserted)
    for row, response in zip(rows.tolist(), responses, strict=True):
        start, size = int(table.start[row]), int(table.prompt_length[row])
        prompt = table.values[table.chunk[row]][start : start + size]
        parts += [prompt[:place], inserted, prompt[place:], ~np.asarray(response, np.int32)]
    lengths = prompts + [len(response) for response in responses]
    changes = {
        "chunk": len(table.values),
        "start": np.cumsum(lengths) - lengths,
        "length": lengths,
        "prompt_length": prompts,
        "is_cut": False,
    }
    columns: dict[str, Any] = {}
    for name, value in changes.items():
        if (column := getattr(table, name)) is not None:
            columns[name] = np.array(column)
            columns[name][rows] = value
    flat = np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)
    longest = int(max(table.max_length, lengths.max(initial=0)))
    return table._replace(values=(*table.values, flat), max_length=longest, **columns)
