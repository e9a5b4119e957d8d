"""A provider's log: every arrival as it came, and what became of it; the evidence of what it saw.

Two lines of JSON for a request, each with a checksum (see `lines`), joined by `request`, which is
also the id of the answer:

| event | says |
| --- | --- |
| `arrived` | time, peer, endpoint, size, and the body: raw, as text or, if it is none, in base64 |
| `settled` | time, status, user, model, answers, tokens and cost; of a refusal, why |

The first is written before anything is made of the body. A body that was refused unread, for want
of a key or for its size, is there with its size alone.
"""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjax_post.provider import lines


class Log:
    """What a provider writes down; nothing without a path."""

    def __init__(self, path: str | Path | None):
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()

    def arrived(self, request: str, *, body: bytes | None, size: int | None, **where: Any) -> None:
        """Writes down an arrival.

        Args:
          request: its id.
          body: raw; None if it was not read to its end.
          size: bytes that there are, or were read; None if that is unknown.
          where: peer and endpoint.
        """
        self._write("arrived", request, **where, size=size, **_as_text(body))

    def settled(self, request: str, *, status: int, **told: Any) -> None:
        """Writes down what became of an arrival."""
        self._write("settled", request, status=status, **told)

    def _write(self, event: str, request: str, **content: Any) -> None:
        if self._path is not None:
            with self._lock:
                head = {"event": event, "request": request, "time": time.time()}
                lines.append(self._path, {**head, **content})


def read_texts(path: str | Path) -> Iterator[str]:
    """All texts that arrived, by a provider's log, whatever they were in.

    Of a body of JSON these are its strings, names of fields included; any other body is one text.
    What an interrupted provider left unfinished is passed over.
    """
    for line in Path(path).read_bytes().splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and told.get("event") == "arrived":
            body = told.get("body") or ""
            if told.get("base64"):
                body = base64.b64decode(told["base64"]).decode("utf-8", "replace")
            try:
                yield from _strings(json.loads(body, object_pairs_hook=list))
            except (ValueError, RecursionError):
                yield body


def _strings(value: Any) -> Iterator[str]:
    """The strings of a JSON value whose objects are lists of pairs: a name may stand twice."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _as_text(body: bytes | None) -> dict[str, str | None]:
    try:
        return {"body": None if body is None else body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body or b"").decode()}
