"""Shares rows out among clients by a rule: those to train on, and the held-out rows alike."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_post.data import clusters
from fedjax_post.data.alike import divide_alike
from fedjax_post.data.partition import Partition, natural
from fedjax_post.data.population import Population
from fedjax_post.data.rules import Rule
from fedjax_post.data.table import TokenTable


class Shares(NamedTuple):
    """Which client holds which rows, and by what they were divided."""

    partition: Partition  # of the rows to train on
    names: tuple[str, ...] = ()  # of natural clients; empty where clients are only numbered
    # of the held-out rows; None if there are none, or if nothing tells whose rows they are like
    heldout: Partition | None = None
    heldout_by: str | None = None  # what decides the client of a held-out row, see `share_out`
    clusters: np.ndarray | None = None  # [num_rows], if the rule made clusters


class _Groups(NamedTuple):
    """What groups rows: the groups of the rows to train on, and of the held-out rows."""

    by: str
    rows: np.ndarray  # [num_rows]
    heldout: np.ndarray | None  # None if the held-out rows have no such groups


def share_out(
    table: TokenTable, heldout: TokenTable | None, population: Population, tokenizer: Any
) -> Shares:
    """Returns who holds which rows.

    | rule | held-out rows are divided by | not divided if they |
    | --- | --- | --- |
    | natural | `client`, where a row names a client that trains, otherwise as below | |
    | natural, dirichlet, shards, language | `label` | have no label |
    | clusters | `clusters`: the nearest centre | |
    | length | `length`: the nearest length of a row to train on | |
    | iid, quantity | `size`: at random, in proportion to the clients' rows | |

    Args:
      table: the rows to train on, with the column that the rule needs.
      heldout: the held-out rows, with the same columns where they have them.
      population: as `settle` returns it.
      tokenizer: decodes rows for clusters of texts.

    Raises:
      ValueError: if so many clients are not possible, or their number is missing.
    """
    rule, num_clients, seed = population.rule, population.num_clients, population.seed
    assert rule is not None  # `settle` has chosen one
    if num_clients is None and rule.needs_number:
        raise ValueError(f"partition={rule.name} needs `num_clients`; give it")
    if rule.divide is None:
        assert table.client is not None  # checked when the columns were chosen
        partition, names = _first(*natural(table.client), num_clients)
        groups = _whose(table, heldout, names)
    else:
        names = ()
        groups = _groups(rule, table, heldout, seed=seed, tokenizer=tokenizer)
        partition = rule.divide(groups.rows, num_clients, seed)
    found = groups.rows if groups.by == "clusters" else None
    if heldout is None or groups.heldout is None:
        return Shares(partition, names, clusters=found)
    alike = divide_alike(partition, groups.rows, groups.heldout, seed=seed)
    return Shares(partition, names, alike, groups.by, found)


def _first(
    partition: Partition, names: tuple[str, ...], num_clients: int | None
) -> tuple[Partition, tuple[str, ...]]:
    """Returns the first clients of a natural partition."""
    if num_clients is None:
        return partition, names
    if not 1 <= num_clients <= len(names):
        raise ValueError(
            f"num_clients={num_clients}, but partition=natural finds {len(names)}; "
            "use at most that many, or another `partition`"
        )
    offsets = partition.offsets[: num_clients + 1]
    return Partition(offsets, partition.indices[: offsets[-1]]), names[:num_clients]


def _whose(table: TokenTable, heldout: TokenTable | None, names: tuple[str, ...]) -> _Groups:
    """Returns the clients that natural rows name, or the labels where held-out rows name none."""
    assert table.client is not None
    own = None if heldout is None else heldout.client
    if own is not None and np.isin(own.astype(str), names).any():
        return _Groups("client", table.client.astype(str), own.astype(str))
    return _labels(table, heldout)


def _groups(
    rule: Rule, table: TokenTable, heldout: TokenTable | None, *, seed: int, tokenizer: Any
) -> _Groups:
    if rule.by is None:
        return _Groups("size", _one(table), None if heldout is None else _one(heldout))
    if rule.by == "length":
        return _Groups("length", table.length, _nearest_length(table, heldout))
    if rule.by == "clusters":
        return _clusters(rule, table, heldout, seed=seed, tokenizer=tokenizer)
    return _labels(table, heldout)


def _one(rows: TokenTable) -> np.ndarray:
    return np.zeros(len(rows.length), np.int64)


def _labels(table: TokenTable, heldout: TokenTable | None) -> _Groups:
    labels = _one(table) if table.label is None else table.label
    known = heldout is not None and heldout.label is not None and table.label is not None
    return _Groups("label", labels, heldout.label if known else None)  # type: ignore[union-attr]


def _nearest_length(table: TokenTable, heldout: TokenTable | None) -> np.ndarray | None:
    """Returns for each held-out row the nearest length of a row to train on."""
    if heldout is None:
        return None
    known = np.unique(table.length)
    after = np.searchsorted(known, heldout.length).clip(max=len(known) - 1)
    before = (after - 1).clip(min=0)
    nearer = heldout.length - known[before] < known[after] - heldout.length
    return np.where(nearer, known[before], known[after])


def _clusters(
    rule: Rule, table: TokenTable, heldout: TokenTable | None, *, seed: int, tokenizer: Any
) -> _Groups:
    held = [] if heldout is None else [heldout]
    if rule.features is None:
        texts = [clusters.texts_of(rows, tokenizer) for rows in (table, *held)]
        features = clusters.tfidf(*texts, seed=seed)[: 1 + len(held)]
    else:
        features = tuple(rule.features(rows) for rows in (table, *held))
    others = features[1] if held else None
    found, nearest = clusters.cluster(features[0], rule.num_clusters, others=others, seed=seed)
    return _Groups("clusters", found, nearest)
