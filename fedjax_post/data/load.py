"""From the name of a data set to clients and a held-out table, in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_post.data.batches import TokenClients
from fedjax_post.data.columns import USUAL_NAMES, Columns, find_columns, match_columns
from fedjax_post.data.partition import Partition, describe, dirichlet, iid, natural
from fedjax_post.data.source import Splits, hold_out, load_splits
from fedjax_post.data.table import TokenTable, make_pair_tables, make_table

if TYPE_CHECKING:
    from datasets import Dataset

_WORDED = "response_word"  # the column that `response_words` makes
PARTITIONS = ("natural", "iid", "dirichlet")


class Text(NamedTuple):
    """How rows become tokens."""

    columns: Columns = Columns()
    template: str = "auto"  # see `is_chat_template`
    max_length: int | None = None  # tokens; None or 0: the longest row
    context_length: int | None = None  # tokens that the model can read; None: no limit
    pack_length: int | None = None  # tokens of a row that examples share; None or 0: one a row
    response_words: Mapping[str, str] | None = None  # label -> response, such as {"0": "sad"}


class Population(NamedTuple):
    """Who holds the rows, and how many nobody holds."""

    partition: str = "natural"  # one of PARTITIONS
    num_clients: int | None = None  # None: all that are natural; else the first ones
    alpha: float = 1.0  # of `dirichlet`
    heldout_fraction: float = 0.05  # where the source holds nothing out itself
    seed: int = 0  # of the partition, the held-out rows and the built-in tasks


class Loaded(NamedTuple):
    """What a run needs of its data."""

    clients: Any  # `TokenClients`, or `PairClients`
    heldout: TokenTable | None  # rows that no client sees; None if there are none
    names: tuple[str, ...]  # of natural clients; empty where clients are only numbered
    report: dict[str, Any]  # `describe`, `heldout_*` and what was chosen, for the record
    rejected: TokenTable | None = None  # of pairs: the held-out rows' other responses


def load_clients(
    dataset: "str | Path | Splits | Dataset | Sequence[dict]",
    tokenizer,
    *,
    batch_size: int,
    local_steps: int | None = None,
    local_epochs: int | None = None,
    text: Text = Text(),  # noqa: B008
    population: Population = Population(),  # noqa: B008
) -> Loaded:
    """Returns the clients of a data set, its held-out rows, and a report on both.

    Args:
      dataset: a name or path as for `load_splits`, or rows in memory.
      tokenizer: a Hugging Face tokenizer.
      batch_size: see `TokenClients`.
      local_steps: see `TokenClients`; exactly one of this and `local_epochs`.
      local_epochs: see `TokenClients`.
      text: how rows become tokens.
      population: who holds which rows.

    Raises:
      ValueError: for bad input, naming the flag of `experiments.train`, its value and the
        remedy.
    """
    if population.partition not in PARTITIONS:
        raise ValueError(
            f"--partition={population.partition} is unknown; use one of {', '.join(PARTITIONS)}"
        )
    splits = hold_out(
        as_splits(dataset, population), population.heldout_fraction, seed=population.seed
    )
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
      splits: rows to train on, and held-out ones if there are any.
      tokenizer: as for `load_clients`.
      columns: every role's, as `partitioned` returns them.
      text: as for `load_clients`; its columns are not read.
      population: as for `load_clients`.
      schedule: `batch_size`, `local_steps` and `local_epochs` of `TokenClients`.
      rejected: of pairs, the column of what is not preferred.

    Raises:
      ValueError: as `make_table`, and if the rows cannot be shared out.
    """
    options = {
        "template": text.template,
        "max_length": text.max_length,
        "context_length": text.context_length,
    }

    def tables(rows: "Dataset", own: Columns) -> tuple[TokenTable, TokenTable | None]:
        if rejected is None:
            return make_table(rows, tokenizer, columns=own, **options), None
        return make_pair_tables(rows, tokenizer, columns=own, rejected=rejected, **options)

    table, other = tables(splits.train, columns)
    partition, names = _share_out(table, population)
    clients = TokenClients(table, partition, pack_length=text.pack_length or None, **schedule)
    report = describe(partition, table) | {
        "partition": population.partition,
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
    heldout, heldout_other = tables(splits.heldout, own)
    report |= {
        "heldout_examples": len(heldout.length),
        "heldout_truncated": heldout.fit.num_truncated,
        "heldout_dropped": heldout.fit.num_dropped,
    }
    return Loaded(clients, heldout, names, report, heldout_other), other


def as_splits(dataset: Any, population: Population) -> Splits:
    """Returns the rows of a name, a path, or rows in memory; nothing is held out yet."""
    if isinstance(dataset, Splits):
        return dataset
    if isinstance(dataset, str | Path):
        wanted = population.num_clients if population.partition == "natural" else None
        return load_splits(str(dataset), num_clients=wanted, seed=population.seed)
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        dataset = datasets.Dataset.from_list(list(dataset))
    return Splits(dataset, None)


def _worded(splits: Splits, text: Text, words: Mapping[str, str]) -> tuple[Splits, Text]:
    """Adds the column of responses in words, made from the labels' column."""
    names, wanted = splits.train.column_names, text.columns
    usual = (name for name in USUAL_NAMES["label"] if name in names)
    source = wanted.response or wanted.label or next(usual, None)
    if source not in names:
        raise ValueError(
            f"--response_words needs a column of labels, and {source or 'label'} is none; choose "
            f"one by --label_column ({', '.join(names)})"
        )

    def add(rows: "Dataset | None") -> "Dataset | None":
        if rows is None:
            return None
        values = [str(value) for value in rows[source]]
        missing = sorted(set(values) - set(words))
        if missing:
            raise ValueError(
                f"--response_words has no word for {source} {missing[0]!r} of row "
                f"{values.index(missing[0])}; it has {', '.join(map(repr, words))}: add one"
            )
        return rows.add_column(_WORDED, np.asarray([words[value] for value in values]))

    columns = wanted._replace(response=_WORDED, label=wanted.label or source)
    return Splits(add(splits.train), add(splits.heldout)), text._replace(columns=columns)


def partitioned(columns: Columns, splits: Splits, population: Population) -> Columns:
    """Returns the columns, checked against what the partition needs.

    Raises:
      ValueError: if it needs a column and there is none.
    """
    needed = {"natural": "client", "dirichlet": "label"}.get(population.partition)
    if needed and getattr(columns, needed) is None:
        raise ValueError(
            f"partition={population.partition} needs a column, and none was found; choose one "
            f"by `{needed}_column` ({', '.join(splits.train.column_names)}), or use partition=iid"
        )
    return columns if population.partition == "natural" else columns._replace(client=None)


def _share_out(table: TokenTable, population: Population) -> tuple[Partition, tuple[str, ...]]:
    num_clients, seed = population.num_clients, population.seed
    if population.partition == "natural":
        assert table.client is not None  # `_columns` saw to it
        partition, names = natural(table.client)
        if num_clients is None:
            return partition, names
        if not 1 <= num_clients <= len(names):
            raise ValueError(
                f"--num_clients={num_clients}, but --partition=natural finds {len(names)}; "
                "use at most that many, or another --partition"
            )
        offsets = partition.offsets[: num_clients + 1]
        return Partition(offsets, partition.indices[: offsets[-1]]), names[:num_clients]
    if num_clients is None:
        raise ValueError(f"--partition={population.partition} needs --num_clients")
    if population.partition == "iid":
        partition = iid(len(table.length), num_clients, seed=seed)
    else:
        assert table.label is not None
        partition = dirichlet(table.label, num_clients, alpha=population.alpha, seed=seed)
    return partition, ()
