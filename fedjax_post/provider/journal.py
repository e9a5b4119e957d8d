"""The journal of paid calls: requests, answers and costs.

An append-only file of JSON lines, each with a checksum. A call to a provider has a key, (round,
client, call), and leaves two lines: `asked`, on disk before anything is sent, and then `answered`
or `failed`; or `refused` if the call is repeated. A resumed run takes the answers from the journal
and does not pay for them again.

| the journal contains | what happens when the call is repeated |
| --- | --- |
| `answered` | the recorded answer is returned, nothing is sent |
| `answered`, to another request | JournalError: this is another run |
| `failed`, and the client was dropped | fails again in the same way, nothing is sent |
| `failed`, and the run was stopped with an error | it is sent again |
| `refused`, and the process was killed before the call was repeated | it is sent again |
| only `asked`: the process was killed | JournalError on opening, unless `ask_again` |

Prompts are not recorded, only digests of the request and of its questions, and the meter's counts
of what it carries, see `disclosure.meter`. Answers are recorded.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedjax_post.disclosure.meter import OUTSIDE as OUTSIDE
from fedjax_post.disclosure.meter import SERVER, Carried
from fedjax_post.provider import lines
from fedjax_post.provider.replies import is_amount, is_count
from fedjax_post.provider.spent import Account, Entry, Key, Place, Spent, key_of

UPLOAD = "upload"  # `kind` of the line of an uploaded file


class JournalError(OSError):
    """A journal does not match the calls of a run."""


class Journal:
    """The journal of one run, open for writing.

    Args:
      path: the file, created if missing; a line that a killed process left incomplete is cut
        off. None keeps the journal in memory.
      ask_again: repeat calls that a killed process had in progress, although they may be paid
        for twice.

    Raises:
      JournalError: if the file is not a journal, or calls were in progress and `ask_again` is
        off.
    """

    def __init__(self, path: str | Path | None = None, *, ask_again: bool = False):
        self._path = None if path is None else Path(path)
        self._ask_again = ask_again
        self._last: dict[Key, Entry] = {}
        self._outside: dict[tuple[int, str], Key] = {}  # (round, request) -> its last call
        self._files: dict[Place, list[tuple[str, int]]] = {}
        self._account = Account()
        self.lock = threading.RLock()  # held from reading what is spent until a line is added
        for line in () if self._path is None else _mend(self._path):
            self._take(line)
        if not ask_again and self.in_doubt():
            raise JournalError(f"{self.in_doubt()}. Nothing was sent again")

    def key(self, round: int, client: int, call: int, request: str) -> Key:
        """Returns the key of a call.

        In a visit, the key is the call's number. Outside visits, and for the server's own calls, a
        resumed run need not repeat calls in the same order, so a call is identified by its
        request. A call that belongs to no round either gets a new key, so it is always sent.

        Args:
          round: of the visit, or `OUTSIDE`.
          client: id, `OUTSIDE` or `SERVER`.
          call: number of the call in the visit.
          request: digest of the request.
        """
        if client >= 0:
            return round, client, call
        if round != OUTSIDE and (round, request) in self._outside:
            return self._outside[round, request]
        return round, client, sum(key[:2] == (round, client) for key in self._last)

    def find(self, key: Key, request: str) -> Entry | None:
        """Returns the `answered` or `failed` line of a call; None if it is to be sent.

        Args:
          key: of the call.
          request: digest of the request.

        Raises:
          JournalError: see the table in the module's docstring.
        """
        entry = self._last.get(key)
        if entry is None:
            return None
        if entry["request"] != request:
            raise JournalError(
                f"{_name(key)} asks something else than the journal {self._path} has recorded: "
                "a resumed run must repeat its calls exactly. Was a flag, the data or the code "
                "changed? Start a new run in another folder, or make the algorithm depend on "
                "its keys alone"
            )
        is_final = entry["state"] == "answered" or entry.get("dropped", False)
        return entry if is_final else None

    def in_doubt(self) -> str:
        """Returns a message on calls that a killed process may have paid for; "" if none."""
        open_ = [line for line in self._last.values() if line["state"] == "asked"]
        if not open_:
            return ""
        queries = sum(line["queries"] for line in open_)
        calls = ", ".join(_name(key_of(line)) for line in open_[:3])
        more = f" and {len(open_) - 3} more" if len(open_) > 3 else ""
        return (
            f"{queries} queries ({calls}{more}) were sent by a process that ended before the "
            f"answer was written to {self._path}; they may have been paid. `ask_again` sends "
            "them again"
        )

    def write(self, state: str, key: Key, request: str, **content: Any) -> Entry:
        """Adds a line, and returns it once it is on disk.

        Args:
          state: asked, answered, refused or failed.
          key: of the call.
          request: digest of the request.
          content: further fields of the line.
        """
        round, client, call = key
        line = {"state": state, "round": round, "client": client, "call": call}
        line |= {"request": request, "time": time.time(), **content}
        with self.lock:
            if self._path is not None:
                lines.append(self._path, line, is_durable=True)
            self._take(line)
        return line

    def files(self, round: int, client: int) -> list[tuple[str, int]]:
        """Returns the ids of the files that were uploaded in a visit, and their tokens.

        Raises:
          JournalError: if there are none.
        """
        found = self._files.get((round, client), [])
        if not found:
            raise JournalError(
                f"{self._path or 'the journal in memory'} has no upload of client {client} in "
                f"round {round}, on which the state of the run rests; start a new run in another "
                "folder"
            )
        return found

    def spent(self) -> Spent:
        """Returns the totals of all calls, including those before a resumption."""
        return self._account.sum()

    def _take(self, line: Entry) -> None:
        key = key_of(line)
        self._last[key] = line
        self._account.take(line)
        if line["state"] == "answered" and line.get("kind") == UPLOAD:
            file = line["replies"][0][0], line["file_tokens"]
            self._files.setdefault(key[:2], []).append(file)
        if key[1] < 0:
            self._outside[key[0], line["request"]] = key


def spent(path: str | Path) -> Spent:
    """Returns the totals of the calls in a journal; zeros if there is no such file."""
    account = Account()
    for line, _ in _read(Path(path)) if Path(path).exists() else ():
        account.take(line)
    return account.sum()


def carried(path: str | Path) -> dict[Place, Carried]:
    """Returns what the calls in a journal carry by (round, client); {} if there is no such file."""
    account = Account()
    for line, _ in _read(Path(path)) if Path(path).exists() else ():
        account.take(line)
    return account.carried()


def last_job(path: str | Path) -> str | None:
    """Returns the id of the last fine-tuning job that a journal's run has started, or None.

    It has made the model that the run deploys: each job trains on all uploads so far.
    """
    jobs: set[Key] = set()
    found: dict[int, str] = {}
    for line, _ in _read(Path(path)) if Path(path).exists() else ():
        key = key_of(line)
        if key[1] == SERVER and line["state"] == "asked" and line["carries"].get("trained"):
            jobs.add(key)
        if key in jobs and line["state"] == "answered":
            found[key[0]] = line["replies"][0][0]
    return found[max(found)] if found else None


def copy_training(source: Path, target: Path) -> None:
    """Copies a journal without its evaluations, which the provider's next model answers otherwise.

    Args:
      source: the journal.
      target: a new file.
    """
    target.touch(0o600)
    for line, _ in _read(source):
        if line["client"] != OUTSIDE:
            lines.append(target, line)


def digest(request: Mapping[str, Any]) -> str:
    """Returns the identifier of a request: 128 bits of a hash of its JSON form."""
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _mend(path: Path) -> Iterator[Entry]:
    """Returns an iterator over a journal's lines; cuts an incomplete last line off the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    whole = 0
    for line, end in _read(path):
        whole = end
        yield line
    if whole < path.stat().st_size:
        os.truncate(path, whole)


def _read(path: Path) -> Iterator[tuple[Entry, int]]:
    try:
        yield from lines.read(path, check=_check)
    except ValueError as error:
        raise JournalError(
            f"{error}. The file is no journal of calls, or is damaged; give a new `directory`"
        ) from None


def _check(line: Any) -> None:
    """Raises ValueError, KeyError or TypeError for a value that is not a line of a journal."""
    fields = {**_FIELDS, **(_OF_STATE[line["state"]] if isinstance(line, dict) else {})}
    for name, fits in fields.items():
        if not fits(line[name]):
            raise ValueError(f"{name} cannot be {str(line[name])[:60]}")
    if line.get("kind") == UPLOAD and not is_count(line["file_tokens"]):
        raise ValueError(f"file_tokens cannot be {str(line['file_tokens'])[:60]}")
    if line["state"] == "answered" and len(line["replies"]) != line["queries"]:
        raise ValueError(f"{len(line['replies'])} replies to {line['queries']} queries")


def _is_reply(value: Any) -> bool:
    text, ended, top = value
    is_number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)
    is_top = top is None or (isinstance(top, dict) and all(map(is_number, top.values())))
    return isinstance(text, str) and isinstance(ended, bool) and is_top


_is_text = lambda value: isinstance(value, str)
_is_bool = lambda value: isinstance(value, bool)
_is_carried = lambda value: (
    isinstance(value, dict)
    and set(Carried._fields) - {"filed", "trained"} <= value.keys() <= set(Carried._fields)
    and all(is_count(number) for name, number in value.items() if name != "distinct")
    and isinstance(value["distinct"], dict)
    and all(map(is_count, value["distinct"].values()))
)
_is_cost = lambda value: value is None or is_amount(value)
_is_place = lambda value: value in (OUTSIDE, SERVER) or is_count(value)
_Fields = Mapping[str, Callable[[Any], bool]]
_FIELDS: _Fields = {
    "state": _is_text, "round": _is_place, "client": _is_place, "call": is_count,
    "request": _is_text, "queries": is_count,
}  # fmt: skip
_ENDED: _Fields = {
    "error": _is_text, "may_be_paid": _is_bool, "sent": _is_bool, "seconds": is_amount,
}  # fmt: skip
_OF_STATE: Mapping[str, _Fields] = {
    "asked": {"worst_cost": _is_cost, "carries": _is_carried},
    "answered": {
        "replies": lambda value: isinstance(value, list) and all(map(_is_reply, value)),
        "prompt_tokens": is_count, "completion_tokens": is_count, "cost": _is_cost,
        "seconds": is_amount,
    },
    "refused": _ENDED,
    "failed": {**_ENDED, "dropped": _is_bool},
}  # fmt: skip


def _name(key: Key) -> str:
    round, client, call = key
    if round == OUTSIDE:
        return f"call {call} outside of any round"
    if client == SERVER:
        return f"call {call} of the server after round {round}"
    return f"call {call} of client {client} in round {round}"
