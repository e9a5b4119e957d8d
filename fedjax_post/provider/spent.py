"""Totals of a run's calls to its provider, summed over the lines of a journal.

What a call carries counts once it may have arrived: each time that it was sent, whether it was
answered, refused, or lost with a killed process. A call counts as nothing if no connection was made
or the budget did not cover it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_post.disclosure.meter import Carried, add

Key = tuple[int, int, int]  # round, client id, number of the call in that visit
Place = tuple[int, int]  # round and client id
Entry = dict[str, Any]


class Spent(NamedTuple):
    """Totals of a run's calls, including calls without an answer that may be billed."""

    calls: int = 0  # requests
    queries: int = 0  # prompts in them
    prompt_tokens: int = 0  # the client's or the provider's count, whichever is larger
    completion_tokens: int = 0  # likewise
    cost: float = 0.0  # in the currency of the prices; 0 without prices
    seconds: float = 0.0  # waiting for answers
    failed: int = 0  # calls without an answer
    unsettled: int = 0  # queries of calls that may have been paid without an answer
    sent: int = 0  # prompts that were sent, including refused and repeated ones


class Account:
    """The running sum over lines of a journal."""

    def __init__(self):
        self._total = Spent()
        self._asked: dict[Key, Entry] = {}
        self._arrived: list[Entry] = []  # `asked` lines of calls that may have arrived

    def take(self, line: Entry) -> None:
        """Adds a line of a journal."""
        key, total = key_of(line), self._total
        first = self._asked.pop(key, None)
        if first is not None and (line["state"] in ("asked", "answered") or line["sent"]):
            self._arrived.append(first)
        if line["state"] == "asked":
            # A second attempt: the first one counts as unsettled.
            total = _add_unsettled(total, first)
            self._asked[key] = line
        elif line["state"] == "answered":
            total = total._replace(
                calls=total.calls + 1,
                queries=total.queries + line["queries"],
                prompt_tokens=total.prompt_tokens + line["prompt_tokens"],
                completion_tokens=total.completion_tokens + line["completion_tokens"],
                cost=total.cost + (line["cost"] or 0.0),
                sent=total.sent + line["queries"],
            )
        elif line["may_be_paid"]:
            total = _add_unsettled(total, first)
        elif line["sent"]:
            total = total._replace(sent=total.sent + line["queries"])
        self._total = total._replace(
            seconds=total.seconds + line.get("seconds", 0.0),
            failed=total.failed + (line["state"] == "failed"),
        )

    def carried(self) -> dict[Place, Carried]:
        """Returns what has arrived, or may have, by place; with calls in progress."""
        parts: dict[Place, list[Carried]] = {}
        for line in [*self._arrived, *self._asked.values()]:
            place = line["round"], line["client"]
            parts.setdefault(place, []).append(Carried(**line["carries"]))
        return {place: add(found) for place, found in parts.items()}

    def sum(self) -> Spent:
        """Returns the totals; calls in progress count with their maximum cost."""
        total = self._total
        for line in self._asked.values():
            total = _add_unsettled(total, line)
        return total


def key_of(line: Mapping[str, Any]) -> Key:
    """Returns the key of a line's call."""
    return line["round"], line["client"], line["call"]


def _add_unsettled(total: Spent, line: Entry | None) -> Spent:
    if line is None:
        return total
    return total._replace(
        calls=total.calls + 1,
        queries=total.queries + line["queries"],
        cost=total.cost + (line["worst_cost"] or 0.0),
        unsettled=total.unsettled + line["queries"],
        sent=total.sent + line["queries"],
    )
