"""From the name of a data set to clients and a held-out table, in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_post.data.batches import TokenClients
from fedjax_post.data.columns import USUAL_NAMES, Columns, find_columns, match_columns
from fedjax_post.data.partition import describe
from fedjax_post.data.population import PARTITIONS, Population, settled, share_out
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import Origin, Splits, hold_out
from fedjax_post.data.table import TokenTable, make_pair_tables, make_table
from fedjax_post.data.typed import as_text
from fedjax_post.data.used import read_used

if TYPE_CHECKING:
    from datasets import Dataset

_WORDED = "response_word"  # the column that `response_words` makes


class Text(NamedTuple):
    """How rows become tokens."""

    columns: Columns = Columns()
    template: str = "auto"  # see `is_chat_template`
    max_length: int | None = None  # tokens; None or 0: the longest row
    context_length: int | None = None  # tokens that the model can read; None: no limit
    pack_length: int | None = None  # tokens of a row that examples share; None or 0: one a row
    response_words: Mapping[str, str] | None = None  # label -> response, such as {"0": "sad"}


class Loaded(NamedTuple):
    """What a run needs of its data."""

    clients: Any  # `TokenClients`, or `PairClients`
    heldout: TokenTable | None  # rows that no client sees; None if there are none
    names: tuple[str, ...]  # of natural clients; empty where clients are only numbered
    report: dict[str, Any]  # `describe`, `heldout_*` and what was chosen, for the record
    rejected: TokenTable | None = None  # of pairs: the held-out rows' other responses


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
      batch_size: see `TokenClients`.
      local_steps: see `TokenClients`; exactly one of this and `local_epochs`.
      local_epochs: see `TokenClients`.
      split: the split to train on, where there are several; see `choose`.
      text: how rows become tokens.
      population: who holds which rows.

    Raises:
      ValueError: for bad input, naming the argument, its value and the remedy.
    """
    if population.partition not in (None, *PARTITIONS):
        raise ValueError(
            f"partition={population.partition} is unknown; use one of {', '.join(PARTITIONS)}"
        )
    splits = as_splits(dataset, population, split=split)
    if text.response_words:
        splits, text = _worded(splits, text, text.response_words)
    columns = partitioned(find_columns(splits.train.column_names, text.columns), splits, population)
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
    """Returns clients, held-out rows and report of splits, and of pairs the clients' other rows.

    Args:
      splits: rows to train on, and held-out ones if the source has any.
      tokenizer: as for `load_clients`.
      columns: every role's, as `partitioned` returns them.
      text: as for `load_clients`; its columns are not read.
      population: as for `load_clients`.
      schedule: `batch_size`, `local_steps` and `local_epochs` of `TokenClients`.
      rejected: of pairs, the column of what is not preferred.

    Raises:
      ValueError: as `make_table`, and if the rows cannot be shared out.
    """
    others = () if rejected is None else (rejected,)
    splits = read_used(splits, columns, template=text.template, others=others)
    splits = hold_out(splits, population.heldout_fraction, seed=population.seed)
    population = settled(population, columns, num_rows=len(splits.train))
    options: dict[str, Any] = {
        "template": text.template,
        "max_length": text.max_length,
        "context_length": text.context_length,
    }

    def tables(
        rows: "Dataset", own: Columns, origin: Origin
    ) -> tuple[TokenTable, TokenTable | None]:
        given: dict[str, Any] = {"columns": own, "origin": origin, **options}
        if rejected is None:
            return make_table(rows, tokenizer, **given), None
        return make_pair_tables(rows, tokenizer, rejected=rejected, **given)

    table, other = tables(splits.train, columns, splits.origin)
    partition, names = share_out(table, population)
    clients = TokenClients(table, partition, pack_length=text.pack_length or None, **schedule)
    sizes = {splits.origin.split: len(splits.train)}
    report = describe(partition, table) | {
        "partition": population.partition,
        "splits": sizes,
        "template": text.template,
        "columns": {role: name for role, name in columns._asdict().items() if name},
        **table.notes._asdict(),
    }
    if splits.heldout is None:
        return Loaded(clients, None, names, report | {"heldout_examples": 0}), other
    # Held-out rows name no client that must keep one, and need no label.
    has_label = columns.label in splits.heldout.column_names
    own = columns._replace(client=None, label=columns.label if has_label else None)
    match_columns(splits.heldout.column_names, own)  # the others must exist
    heldout, heldout_other = tables(splits.heldout, own, splits.heldout_origin)
    sizes[splits.heldout_origin.split] = len(splits.heldout)
    report |= {
        "heldout_examples": len(heldout.length),
        "heldout_truncated": heldout.fit.num_truncated,
        "heldout_dropped": heldout.fit.num_dropped,
    }
    return Loaded(clients, heldout, names, report, heldout_other), other


def as_splits(dataset: Any, population: Population, *, split: str | None = None) -> Splits:
    """Returns the rows of a name, a path, or rows in memory; nothing is held out yet."""
    wanted = population.num_clients if population.partition in (None, "natural") else None
    return load_splits(dataset, split=split, num_clients=wanted, seed=population.seed)


def _worded(splits: Splits, text: Text, words: Mapping[str, str]) -> tuple[Splits, Text]:
    """Adds the column of responses in words, made from the labels' column."""
    names, wanted = splits.train.column_names, text.columns
    usual = (name for name in USUAL_NAMES["label"] if name in names)
    source = wanted.response or wanted.label or next(usual, None)
    if source is None or source not in names:
        raise ValueError(
            f"`response_words` needs a column of labels, and {source or 'label'} is none; choose "
            f"one by `label_column` ({', '.join(names)})"
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
                    f"column {source}, which `response_words` puts into words, {what}"
                    if value is None
                    else f"`response_words` has no word for {source} {value!r} of row "
                    f"{origin.row(index)}; it has {', '.join(map(repr, words))}: add one"
                )
        return rows.add_column(_WORDED, np.asarray([words[value] for value in values]))

    columns = wanted._replace(response=_WORDED, label=wanted.label or source)
    train, heldout = add(splits.train, splits.origin), add(splits.heldout, splits.heldout_origin)
    assert train is not None
    return splits._replace(train=train, heldout=heldout), text._replace(columns=columns)


def partitioned(columns: Columns, splits: Splits, population: Population) -> Columns:
    """Returns the columns, checked against what the partition needs.

    Raises:
      ValueError: if it needs a column and there is none.
    """
    needed = {"natural": "client", "dirichlet": "label"}.get(population.partition or "")
    if needed and getattr(columns, needed) is None:
        raise ValueError(
            f"partition={population.partition} needs a column, and none was found; choose one "
            f"by `{needed}_column` ({', '.join(splits.train.column_names)}), or use partition=iid"
        )
    return columns if population.partition in (None, "natural") else columns._replace(client=None)
