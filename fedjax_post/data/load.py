"""Loads a data set by name into clients and a held-out table, in one call."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_post.data.apart import Apart, Parted, set_apart
from fedjax_post.data.batches import TokenClients
from fedjax_post.data.columns import USUAL_NAMES, Columns, find_columns, match_columns
from fedjax_post.data.overlap import also_trained
from fedjax_post.data.partition import Partition, describe
from fedjax_post.data.population import Population, settle
from fedjax_post.data.shares import Shares, share_out
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import Origin, Splits, hold_out, limit
from fedjax_post.data.table import TokenTable, make_pair_tables, make_table, take_rows
from fedjax_post.data.typed import as_text
from fedjax_post.data.used import read_used

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)
_RARE = 0.01  # share of held-out rows that may be rows of clients before a warning
_WORDS_COLUMN = "response_word"  # the column that is made for `response_words`


class Text(NamedTuple):
    """How rows are turned into tokens."""

    columns: Columns = Columns()
    template: str = "auto"  # see `is_chat_template`
    max_length: int | None = None  # tokens of a row; None or 0: as long as the longest row
    context_length: int | None = None  # tokens that the model can read; None: no limit
    pack_length: int | None = None  # tokens of a packed row; None or 0: rows are not packed
    response_words: Mapping[str, str] | None = None  # label -> response, such as {"0": "sad"}


class Loaded(NamedTuple):
    """The data of a run."""

    clients: Any  # `TokenClients`, or `PairClients`
    heldout: TokenTable | None  # rows that no client sees; None if there are none
    names: tuple[str, ...]  # names of natural clients; empty where clients are only numbered
    report: dict[str, Any]  # for the record: `describe`, `heldout_*` and the choices made
    rejected: TokenTable | None = None  # of preference pairs: held-out rows with rejected responses
    # of the held-out rows, among the same clients; None where they cannot be divided, see `shares`
    heldout_partition: Partition | None = None
    clusters: np.ndarray | None = None  # [num_rows], of the clients' table; None without clusters
    apart: Apart | None = None  # clients that never train; None if all do


def load_clients(
    dataset: "str | Path | Splits | Dataset | Mapping[str, Dataset] | Sequence[dict]",
    tokenizer,
    *,
    batch_size: int,
    local_steps: int | None = None,
    local_epochs: int | None = None,
    split: str | None = None,
    text: Text = Text(),  # noqa: B008
    population: Population = Population(),  # noqa: B008
) -> Loaded:
    """Returns the clients of a data set, its held-out rows, and a report on both.

    Args:
      dataset: a name, a path, or rows in memory, as for `load_splits`.
      tokenizer: a Hugging Face tokenizer.
      batch_size: rows in a batch, B; see `TokenClients`.
      local_steps: steps in each visit, K; give either this or `local_epochs`.
      local_epochs: passes over the client's rows in each visit, E.
      split: the split to train on, where there are several; see `choose`.
      text: how rows are turned into tokens.
      population: how rows are divided among clients.

    Raises:
      ValueError: for bad input. The message gives the argument, its value and the remedy.

    Example:
      >>> import tempfile, datasets
      >>> from fedjax_post.hub.tokenizer import load_tokenizer
      >>> datasets.config.HF_DATASETS_CACHE = tempfile.mkdtemp()  # where tokens are cached
      >>> rows = [
      ...     {"prompt": "opposites: hot dry", "response": "cold wet", "client": name}
      ...     for name in ("ann", "bob", "ann", "bob", "bob", "ann")
      ... ]
      >>> loaded = load_clients(rows, load_tokenizer("builtin"), batch_size=2, local_steps=3)
      >>> loaded.names, loaded.report["heldout_examples"]
      (('ann', 'bob'), 1)
      >>> visit = loaded.clients.visit(0, np.random.default_rng(0))
      >>> visit.batches["tokens"].shape  # steps, rows of a batch, tokens of a row
      (3, 2, 16)
    """
    splits = as_splits(dataset, population, split=split)
    if text.response_words:
        splits, text = _add_response_words(splits, text, text.response_words)
    columns = columns_for_partition(
        find_columns(splits.train.column_names, text.columns), splits, population
    )
    schedule = {"batch_size": batch_size, "local_steps": local_steps, "local_epochs": local_epochs}
    return assemble(
        splits, tokenizer, columns=columns, text=text, population=population, schedule=schedule
    )[0]


def assemble(
    splits: Splits,
    tokenizer,
    *,
    columns: Columns,
    text: Text,
    population: Population,
    schedule: Mapping[str, Any],
    rejected: str | None = None,
) -> tuple[Loaded, TokenTable | None]:
    """Returns clients, held-out rows and report of splits; for pairs also the rejected rows.

    Args:
      splits: rows to train on, and held-out rows if the source has any.
      tokenizer: as for `load_clients`.
      columns: the column of every role, as `columns_for_partition` returns them.
      text: as for `load_clients`; its field `columns` is not read.
      population: as for `load_clients`.
      schedule: `batch_size`, `local_steps` and `local_epochs` of `TokenClients`.
      rejected: the column of rejected responses, for preference pairs; None: no pairs.

    Returns:
      The loaded data, and the table of the clients' rows with their rejected responses (None
      without pairs).

    Raises:
      ValueError: as `make_table`, and if the rows cannot be divided among the clients.
    """
    others = () if rejected is None else (rejected,)
    named = match_columns(splits.train.column_names, text.columns).client
    splits = read_used(splits, columns, template=text.template, others=others)
    is_given = splits.heldout is not None
    splits = hold_out(splits, population.heldout_fraction, seed=population.seed)
    available = len(splits.train)
    splits = limit(splits, population.max_examples, seed=population.seed)
    population = settle(population, columns, num_rows=len(splits.train))
    assert population.rule is not None
    options: dict[str, Any] = {
        "template": text.template,
        "max_length": text.max_length,
        "context_length": text.context_length,
    }

    def make_tables(
        rows: "Dataset", own: Columns, origin: Origin
    ) -> tuple[TokenTable, TokenTable | None]:
        given: dict[str, Any] = {"columns": own, "origin": origin, **options}
        if rejected is None:
            return make_table(rows, tokenizer, **given), None
        return make_pair_tables(rows, tokenizer, rejected=rejected, **given)

    table, other = make_tables(splits.train, columns, splits.origin)
    sizes = {splits.origin.split: len(splits.train)}
    heldout, heldout_other = None, None
    if splits.heldout is not None:
        origin = splits.heldout_origin._replace(held_out=True)
        own = _heldout_columns(splits.heldout.column_names, columns)
        heldout, heldout_other = make_tables(splits.heldout, own, origin)
        sizes[splits.heldout_origin.split] = len(splits.heldout)
    shares = share_out(table, heldout, population, tokenizer)
    parted = _part(shares, heldout, population)
    heldout, heldout_other = (_keep(rows, parted.kept) for rows in (heldout, heldout_other))
    partition = parted.partition
    clients = TokenClients(table, partition, pack_length=text.pack_length or None, **schedule)
    report = describe(partition, table) | {
        "partition": population.rule.text,
        "splits": sizes,
        "not_chosen": available - len(splits.train),
        "template": text.template,
        "unused_client_column": named if columns.client is None else None,
        "columns": {role: name for role, name in columns._asdict().items() if name},
        **table.notes._asdict(),
        **_describe_heldout(heldout, parted, shares.heldout_by),
        **_describe_overlap(heldout, table, is_given=is_given),
    }
    loaded = Loaded(clients, heldout, parted.names, report, heldout_other, parted.heldout)
    return loaded._replace(clusters=shares.clusters, apart=parted.apart), other


def _keep(rows: TokenTable | None, kept: np.ndarray | None) -> TokenTable | None:
    """Returns some rows of a table, or all if `kept` is None; None without a table."""
    return rows if rows is None or kept is None else take_rows(rows, kept)


def _heldout_columns(names: Sequence[str], columns: Columns) -> Columns:
    """Returns the columns of held-out rows, which need neither a client nor a label.

    Raises:
      ValueError: if another column is missing.
    """
    absent = [role for role in ("client", "label") if getattr(columns, role) not in names]
    own = columns._replace(**dict.fromkeys(absent))
    match_columns(names, own)
    return own


def _part(shares: Shares, heldout: TokenTable | None, population: Population) -> Parted:
    """Returns the clients that train, and those that are set apart."""
    assert population.rule is not None
    is_theirs = population.rule.by != "client" or shares.heldout_by == "client"
    return set_apart(
        shares.partition,
        shares.heldout,
        names=shares.names,
        num_heldout=len(heldout.length) if heldout is not None and is_theirs else None,
        share=population.heldout_clients,
        seed=population.seed,
    )


def _describe_heldout(heldout: TokenTable | None, parted: Parted, by: str | None) -> dict[str, Any]:
    """Returns the entries of the report on held-out clients and rows.

    `heldout_by` is what decides the client of a held-out row, see `share_out`; None: no held-out
    row belongs to a client. `clients_with_heldout` counts the clients that have held-out rows.
    """
    apart = [0] if parted.apart is None else parted.apart.partition.offsets
    clients = {"heldout_clients": len(apart) - 1, "heldout_clients_examples": int(apart[-1])}
    if heldout is None:
        return clients | {"heldout_examples": 0}
    offsets = [0] if parted.heldout is None else parted.heldout.offsets
    return clients | {
        "heldout_examples": len(heldout.length),
        "heldout_truncated": heldout.fit.num_truncated,
        "heldout_dropped": heldout.fit.num_dropped,
        "heldout_by": by,
        "clients_with_heldout": int(np.count_nonzero(np.diff(offsets))),
    }


def _describe_overlap(
    heldout: TokenTable | None, table: TokenTable, *, is_given: bool
) -> dict[str, int]:
    """Returns how many held-out rows clients have too, and how many clients have no other rows.

    Warns of what makes scores look better than they are, and of clients that are not there.

    Args:
      heldout: the held-out rows, if there are any.
      table: the rows of clients.
      is_given: whether the source holds rows out itself, of whichever clients.
    """
    if heldout is None:
        return {}
    shared = int(also_trained(heldout, table).sum())
    if shared > _RARE * len(heldout.length):
        _LOG.warning(
            "%d of %d held-out rows are rows that clients train on, word for word: scores are too "
            "good; leave repeated rows out of the data",
            *(shared, len(heldout.length)),
        )
    if is_given or table.client is None or heldout.client is None:
        return {"heldout_also_trained": shared}
    absent = len(np.setdiff1d(heldout.client.astype(str), table.client.astype(str)))
    if absent:
        _LOG.warning(
            "%d clients have held-out rows alone, and do not train; hold out fewer rows, or "
            "give these clients more",
            absent,
        )
    return {"heldout_also_trained": shared, "clients_without_training": absent}


def as_splits(dataset: Any, population: Population, *, split: str | None = None) -> Splits:
    """Returns the rows of a data set, before any are held out.

    Args:
      dataset: a name, a path, or rows in memory, as for `load_splits`.
      population: gives the number of clients and the seed of the built-in tasks.
      split: the split to train on, where there are several; see `choose`.

    Raises:
      ValueError: as `load_splits`.
    """
    own = population.rule is None or population.rule.by == "client"
    wanted = population.num_clients if own else None
    return load_splits(dataset, split=split, num_clients=wanted, seed=population.seed)


def _add_response_words(
    splits: Splits, text: Text, words: Mapping[str, str]
) -> tuple[Splits, Text]:
    """Returns splits with a column of responses in words, made from the column of labels."""
    names, wanted = splits.train.column_names, text.columns
    usual = (name for name in USUAL_NAMES["label"] if name in names)
    source = wanted.response or wanted.label or next(usual, None)
    if source is None or source not in names:
        raise ValueError(
            f"`response_words` needs a column of labels, and there is no column "
            f"{source or 'label'}; choose one by `label_column` ({', '.join(names)})"
        )

    def add(rows: "Dataset | None", origin: Origin) -> "Dataset | None":
        if rows is None:
            return None
        rows = as_text(rows, [source], flat=[source], row_fn=origin.row)
        values = rows[source][:]
        for index, value in enumerate(values):
            if value not in words:
                what = f"is empty in row {origin.row(index)}; fill it or leave the row out"
                raise ValueError(
                    f"column {source}, which `response_words` turns into words, {what}"
                    if value is None
                    else f"`response_words` has no word for {source} {value!r} of row "
                    f"{origin.row(index)}; it has {', '.join(map(repr, words))}: add one"
                )
        return rows.add_column(_WORDS_COLUMN, np.asarray([words[value] for value in values]))

    columns = wanted._replace(response=_WORDS_COLUMN, label=wanted.label or source)
    train, heldout = add(splits.train, splits.origin), add(splits.heldout, splits.heldout_origin)
    assert train is not None
    return splits._replace(train=train, heldout=heldout), text._replace(columns=columns)


def columns_for_partition(columns: Columns, splits: Splits, population: Population) -> Columns:
    """Returns the columns, after a check that the partition has the column that it needs.

    Args:
      columns: the column of each role.
      splits: gives the names of all columns, for the message.
      population: gives the partition. Unless it is natural, the column of clients is dropped.

    Returns:
      Columns without a language: by the rule `language`, languages are the labels.

    Raises:
      ValueError: if the partition needs a column and there is none.
    """
    rule = population.rule
    if rule is None:
        return columns._replace(language=None)
    if rule.by in ("client", "label", "language") and getattr(columns, rule.by) is None:
        raise ValueError(
            f"partition={rule.name} needs a column, and none was found; choose one "
            f"by `{rule.by}_column` ({', '.join(splits.train.column_names)}), or use partition=iid"
        )
    if rule.by == "language":
        columns = columns._replace(label=columns.language)
    if rule.by != "client":
        columns = columns._replace(client=None)
    return columns._replace(language=None)
