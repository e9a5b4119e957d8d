"""Record files, read back."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(directory: str | Path) -> list[Record]:
    """Returns the records of a run's folder, a dict a round.

    Raises:
      FileNotFoundError: if there is no `records.jsonl`.
      ValueError: naming the line that is not JSON.
    """
    path = Path(directory) / "records.jsonl"
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
    return records


def series(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    """Returns the rounds done, from 1, and the values, of the records that have a value."""
    chosen = [record for record in records if record.get(name) is not None]
    return [record["round"] + 1 for record in chosen], [record[name] for record in chosen]
