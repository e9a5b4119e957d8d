"""The journal of paid calls: what was asked, what came back, and what it cost.

An append-only file of JSON lines. A call to a provider has a key, (round, client, call),
and leaves two lines: `asked`, on the disk before anything is sent, and then `answered` or
`failed`. A run that is resumed finds the answers here and pays for none of them again.

| the journal holds | the same call comes again |
| --- | --- |
| `answered` | the answer is taken from here, nothing is sent |
| `answered`, to another request | JournalError: the run is not the one that was journalled |
| `failed`, the client was dropped | fails again in the same way, nothing is sent |
| `failed`, the run was stopped, and said so | it is sent again |
| `asked` and no more: the process was killed | JournalError at once, unless `ask_again` |

Prompts are not written down, only a digest of the request; answers are.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Key = tuple[int, int, int]  # round, client id, number of the call in that visit
Entry = dict[str, Any]
OUTSIDE = -1  # the round and the client of a call that belongs to no visit


class JournalError(OSError):
    """What a journal holds and what is asked do not fit together."""


class Spent(NamedTuple):
    """What a run asked of its provider; calls without an answer count too, if it may bill them."""

    calls: int = 0  # requests
    queries: int = 0  # prompts in them
    prompt_tokens: int = 0  # as the provider counted them
    completion_tokens: int = 0
    cost: float = 0.0  # in the currency of the prices; 0 where none are known
    seconds: float = 0.0  # waiting for answers
    failed: int = 0  # calls without an answer
    unsettled: int = 0  # queries of calls that may have been paid without an answer


class Journal:
    """The journal of one run, open for writing.

    Args:
      path: the file, made if missing; a line that a killed process left unfinished is
        cut off. None keeps the journal in memory.
      ask_again: send those calls again that a killed process had under way, although
        they may be paid twice.

    Raises:
      JournalError: if the file is no journal, or calls were under way and `ask_again` is off.
    """

    def __init__(self, path: str | Path | None = None, *, ask_again: bool = False):
        self._path = None if path is None else Path(path)
        self._ask_again = ask_again
        self._last: dict[Key, Entry] = {}
        self._outside: dict[tuple[int, str], Key] = {}  # (round, request) -> its last call
        self._account = _Account()
        for line in () if self._path is None else _mended(self._path):
            self._take(line)
        if not ask_again and self.in_doubt():
            raise JournalError(f"{self.in_doubt()}. Nothing was sent again")

    def key(self, round: int, client: int, call: int, request: str) -> Key:
        """The key of a call.

        Within a visit that is its number. Outside of visits (`OUTSIDE` for a client) there is
        no order that a resumed run must repeat, and a call is known by what it asks; outside
        of rounds too, by nothing: it is always sent.
        """
        if client != OUTSIDE:
            return round, client, call
        if round != OUTSIDE and (round, request) in self._outside:
            return self._outside[round, request]
        return round, client, sum(key[:2] == (round, client) for key in self._last)

    def find(self, key: Key, request: str) -> Entry | None:
        """What is known of a call: its `answered` or `failed` line, or None if it is to be sent.

        Args:
          key: of the call.
          request: digest of what is asked.

        Raises:
          JournalError: see the table in the module's head.
        """
        entry = self._last.get(key)
        if entry is None:
            return None
        if entry["request"] != request:
            raise JournalError(
                f"{_name(key)} asks something else than the journal {self._path} says it asked: "
                "a resumed run must repeat itself exactly. Was a flag, the data or the code "
                "changed? Start a new run in another folder, or make the algorithm depend on "
                "its keys alone"
            )
        resend = entry["state"] == "asked" or (entry["state"] == "failed" and not entry["dropped"])
        return None if resend else entry

    def in_doubt(self) -> str:
        """What a killed process may have paid for without an answer; "" if nothing."""
        lines = [line for line in self._last.values() if line["state"] == "asked"]
        if not lines:
            return ""
        queries = sum(line["queries"] for line in lines)
        calls = ", ".join(_name(key_of(line)) for line in lines[:3])
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        return (
            f"{queries} queries ({calls}{more}) were sent by a process that ended before the "
            f"answer was written to {self._path}; they may have been paid. --ask_again sends "
            "them once more"
        )

    def write(self, state: str, key: Key, request: str, **content: Any) -> Entry:
        """Adds a line, and returns when it is on the disk.

        Args:
          state: asked, answered or failed.
          key: of the call.
          request: digest of what is asked.
          content: what else the line says.
        """
        round, client, call = key
        line = {"state": state, "round": round, "client": client, "call": call}
        line |= {"request": request, "time": time.time(), **content}
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._take(line)
        return line

    def spent(self) -> Spent:
        """What the calls came to, those before a resumption included."""
        return self._account.sum()

    def _take(self, line: Entry) -> None:
        key = key_of(line)
        self._last[key] = line
        self._account.take(line)
        if key[1] == OUTSIDE:
            self._outside[key[0], line["request"]] = key


def spent(path: str | Path) -> Spent:
    """What the calls in a journal came to; nothing if there is no such file."""
    account = _Account()
    for line in _read(Path(path))[0] if Path(path).exists() else ():
        account.take(line)
    return account.sum()


def digest(request: Mapping[str, Any]) -> str:
    """What identifies a request: 128 bits of its JSON form."""
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def key_of(line: Entry) -> Key:
    """The key of a line's call."""
    return line["round"], line["client"], line["call"]


class _Account:
    """The sum over lines, as they come."""

    def __init__(self):
        self._total = Spent()
        self._asked: dict[Key, Entry] = {}

    def take(self, line: Entry) -> None:
        key, total = key_of(line), self._total
        first = self._asked.pop(key, None)
        if line["state"] == "asked":
            # A second attempt: the first one's bill stays open.
            total = _add_unsettled(total, first)
            self._asked[key] = line
        elif line["state"] == "failed":
            total = _add_unsettled(total, first if line["may_be_paid"] else None)
            total = total._replace(failed=total.failed + 1)
        else:
            total = total._replace(
                calls=total.calls + 1,
                queries=total.queries + line["queries"],
                prompt_tokens=total.prompt_tokens + line["prompt_tokens"],
                completion_tokens=total.completion_tokens + line["completion_tokens"],
                cost=total.cost + (line["cost"] or 0.0),
            )
        self._total = total._replace(seconds=total.seconds + line.get("seconds", 0.0))

    def sum(self) -> Spent:
        total = self._total
        for line in self._asked.values():
            total = _add_unsettled(total, line)
        return total


def _add_unsettled(total: Spent, line: Entry | None) -> Spent:
    if line is None:
        return total
    return total._replace(
        calls=total.calls + 1,
        queries=total.queries + line["queries"],
        cost=total.cost + (line["worst_cost"] or 0.0),
        unsettled=total.unsettled + line["queries"],
    )


def _mended(path: Path) -> Iterator[Entry]:
    """The lines of a journal, an unfinished one at its end cut off from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    lines, size = _read(path)
    if size < path.stat().st_size:
        os.truncate(path, size)
    yield from lines


def _read(path: Path) -> tuple[list[Entry], int]:
    """The whole lines of a journal, and their bytes."""
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        for line in lines:
            key_of(line), line["state"], line["request"]
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(
            f"{path} is not a journal of calls ({error!r}); give a new --output_dir"
        ) from None
    return lines, len(whole)


def _name(key: Key) -> str:
    round, client, call = key
    if round == OUTSIDE:
        return f"call {call} outside of any round"
    return f"call {call} of client {client} in round {round}"
