"""Scores by client as text: how they are spread over the clients."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_post.report.table import columns, score_cells

# Table of a run's summary -> what its lines are
TABLES = {
    "shared": "clients",
    "personal": "personal models",
    "heldout": "held-out clients",
}
# Rows of a client that are scored -> how they are called
ROWS = {
    "own": "their own held-out rows",
    "labels": "held-out rows with their labels",
    "all": "all held-out rows",
    "training": "rows that they train on",
    "heldout_client": "rows that nobody trains on",
}
_NUMBERS = {
    "mean_by_clients": "mean by clients",
    "mean_by_examples": "mean by examples",
    "worst_tenth": "worst 10 %",
    "variance": "variance",
    "jain": "Jain's index",
}


def spread_rows(found: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """Returns the rows of a text table for one of the entries `clients` of a summary.

    Args:
      found: the entry, with "scores".
      names: of the scores, one column for each.
    """
    rows = []
    for number, title in _NUMBERS.items():
        values = {name: one[number] for name, one in found["scores"].items()}
        if number in ("variance", "jain"):
            cells = [f"{values[name]:.3g}" if name in values else "-" for name in names]
        else:
            cells = score_cells(values, list(names))
        rows.append([f"  {title}", *cells])
    return rows


def heading(table: str, found: Mapping[str, Any]) -> str:
    """Returns what an entry `clients` of a summary is about, such as `8 clients, on ...`.

    Args:
      table: name of the entry.
      found: the entry, with "clients", "rows" and "scores".
    """
    unscored = min((one["unscored"] for one in found["scores"].values()), default=0)
    scored = found["clients"] - unscored
    of = f" of {found['clients']:,}" if unscored else ""
    return f"{scored:,}{of} {TABLES[table]}, on {ROWS[found['rows']]}"


def spread_table(clients: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Returns the entries `clients` of a summary as a text table; "" if there are none.

    Args:
      clients: the entries, by table.
      titles: of the scores, in order; scores that no client has are left out.
    """
    found = {table: one for table, one in clients.items() if one["scores"]}
    names = [name for name in titles if any(name in one["scores"] for one in found.values())]
    rows = [["by client", *(titles[name] for name in names)]]
    for table, one in found.items():
        rows.append([heading(table, one), *[""] * len(names)])
        rows += spread_rows(one, names)
    return columns(rows) if found else ""
