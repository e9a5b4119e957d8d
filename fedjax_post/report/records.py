"""Reads record files."""

from pathlib import Path
from typing import Any

from fedjax_post import integrity

Record = dict[str, Any]


def read_records(directory: str | Path) -> list[Record]:
    """Returns the records in a run's folder, one dict for each round.

    Raises:
      FileNotFoundError: if there is no `records.jsonl`.
      DamagedError: naming the line that has changed since it was written.
    """
    return list(integrity.read_lines(Path(directory) / "records.jsonl"))


def read_summary(directory: str | Path) -> dict[str, Any]:
    """Returns the summary in a run's folder.

    Raises:
      FileNotFoundError: if there is no `summary.json`, because the run has not ended.
      DamagedError: if it has changed since it was written.
    """
    return integrity.read_file(Path(directory) / "summary.json")


def series(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    """Returns round numbers, from 1, and values of an entry, for the records that have it.

    >>> series([{"round": 0, "loss": 2.0}, {"round": 1, "loss": None}], "loss")
    ([1], [2.0])
    """
    chosen = [record for record in records if record.get(name) is not None]
    return [record["round"] + 1 for record in chosen], [record[name] for record in chosen]
