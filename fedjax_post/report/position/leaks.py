"""A table of the private tokens that each party recovers, from queries and from updates."""

from collections.abc import Mapping
from typing import Any

from fedjax_post.report.comparison import interval
from fedjax_post.report.markup import Block, Prose, Table
from fedjax_post.report.position.ladder import (
    UNPROTECTED,
    Cell,
    Ladder,
    asks,
    if_hosted,
    of_kind,
    over_seeds,
)
from fedjax_post.report.position.rules import count, numbers, percent


def leaks(ladder: Ladder) -> list[Block]:
    """Returns the table, in one unit for both parties, or what is missing."""
    rows = [
        *(_of_host(cell) for cell in of_kind(ladder, "closed") if asks(cell)),
        *(_of_attack(row) for row in ladder.facts.get("attacks") or []),
    ]
    if not ladder.facts.get("attacks"):
        rows_told = "Missing: attacks on the updates, which no [attacks] of this ladder asks for."
    else:
        rows_told = (
            "Guessing takes as many held-out questions at random as the attack returns, or as "
            "there are, and is the mean over many draws. A low share is a failure of these "
            "attacks, and no protection."
        )
    head = (
        "party",
        "method",
        "by",
        "wire",
        "protection",
        "private tokens",
        "recovered",
        "guessing",
    )
    found: list[Block] = [
        Prose(
            "The unit is a private token of a question: templates and answers are left out. The "
            "host of a target reads what it is asked, word by word; this is no attack and follows "
            "from the access, and only the count is measured. The server attacks the updates of "
            f"the visits that were recorded. {rows_told}"
        )
    ]
    return [*found, Table(head, rows)] if rows else found


def is_plain(row: Mapping[str, Any]) -> bool:
    """Returns whether an attack was made on a wire without a protection."""
    return row.get("protection", UNPROTECTED) == UNPROTECTED


def is_own(row: Mapping[str, Any]) -> bool:
    """Returns whether an attack was made on updates as a cell of the ladder sends them.

    Records that do not say so name the wire of a cell "own", or no wire.
    """
    return bool(row.get("own", row.get("wire", "own") == "own"))


def _of_host(cell: Cell) -> tuple[str, ...]:
    seen = count(over_seeds(cell, if_hosted))
    return ("host of the target", cell.label, "reading", "queries", UNPROTECTED, seen, "all", "")


def _of_attack(row: Mapping[str, Any]) -> tuple[str, ...]:
    share = lambda key: (
        percent(interval(values)) if (values := numbers(row.get(key))) else "missing"
    )
    tokens = numbers(row.get("tokens"))
    return (
        str(row.get("party", "server")),
        str(row.get("method")),
        str(row.get("attack")),
        str(row.get("wire", "updates")),
        str(row.get("protection", UNPROTECTED)),
        count(interval(tokens)) if tokens else "missing",
        share("recovered"),
        share("guess"),
    )
