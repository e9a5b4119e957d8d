"""Record files, read back."""

from pathlib import Path
from typing import Any

from fedjax_post import integrity

Record = dict[str, Any]


def read_records(directory: str | Path) -> list[Record]:
    """Returns the records of a run's folder, a dict a round.

    Raises:
      FileNotFoundError: if there is no `records.jsonl`.
      DamagedError: naming the line that is not as it was written.
    """
    return list(integrity.read_lines(Path(directory) / "records.jsonl"))


def read_summary(directory: str | Path) -> dict[str, Any]:
    """Returns the summary of a run's folder.

    Raises:
      FileNotFoundError: if there is no `summary.json`: the run has not ended.
      DamagedError: if it is not as it was written.
    """
    return integrity.read_file(Path(directory) / "summary.json")


def series(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    """Returns the rounds done, from 1, and the values, of the records that have a value."""
    chosen = [record for record in records if record.get(name) is not None]
    return [record["round"] + 1 for record in chosen], [record[name] for record in chosen]
