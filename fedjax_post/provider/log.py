"""A provider's log: every request as it arrived, and its outcome, as evidence of what it saw.

There are two lines of JSON for each request, each with a checksum (see `lines`). They share the
field `request`, which is also the id of an answer. Requests that only read something (GET) are not
logged.

| event | content |
| --- | --- |
| `arrived` | time, peer, endpoint, size, and the raw body: as text, or in base64 if it is no text |
| `settled` | time, status, user, model, answers, tokens and cost; for a refusal, its reason |
| `tuned` | a fine-tuning job that has ended: its files, its model's name, tokens and cost |

The first line is written before the body is parsed. For a body that was refused unread, because
of its key or size, only the size is logged.
"""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjax_post.provider import forms, lines
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.training_rows import read_lines, texts_of


class Log:
    """The log of a provider; without a path nothing is written."""

    def __init__(self, path: str | Path | None):
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()

    def write_arrival(
        self, request: str, *, body: bytes | None, size: int | None, **where: Any
    ) -> None:
        """Writes that a request arrived.

        Args:
          request: its id.
          body: raw; None if it was not read completely.
          size: number of bytes declared or read; None if unknown.
          where: peer, endpoint, and the content type of a form.
        """
        self._write("arrived", request, **where, size=size, **_as_text(body))

    def write_outcome(self, request: str, *, status: int, **facts: Any) -> None:
        """Writes the outcome of a request.

        Args:
          request: its id.
          status: HTTP status of the answer.
          facts: further fields of the line.
        """
        self._write("settled", request, status=status, **facts)

    def write_job(self, *, job: str, **facts: Any) -> None:
        """Writes that a fine-tuning job has ended.

        Args:
          job: its id.
          facts: further fields of the line.
        """
        self._write("tuned", job, **facts)

    def _write(self, event: str, request: str, **content: Any) -> None:
        if self._path is not None:
            with self._lock:
                head = {"event": event, "request": request, "time": time.time()}
                lines.append(self._path, {**head, **content})


def read_texts(path: str | Path) -> Iterator[str]:
    """Returns an iterator over all texts that arrived, from a provider's log.

    For a JSON body these are all its strings, including names of fields. For an uploaded file, each
    line is one text: its prompt and completion, or its messages, one after another. Any other body
    is one text. Incomplete lines of an interrupted provider are skipped.
    """
    for line in Path(path).read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("event") == "arrived":
            body = entry.get("body") or ""
            if entry.get("base64"):
                body = base64.b64decode(entry["base64"]).decode("utf-8", "replace")
            if rows := _rows(body, entry.get("content_type") or ""):
                yield from rows
                continue
            try:
                yield from _strings(json.loads(body, object_pairs_hook=list))
            except (ValueError, RecursionError):
                yield body


def _rows(body: str, content_type: str) -> list[str]:
    """Returns the texts of an uploaded file's lines; none if it is no such file."""
    try:
        fields = forms.read(body.encode(), content_type)
        return [texts_of(row) for row in read_lines(fields["file"].content)]
    except (ValueError, KeyError, Refusal):
        return []


def _strings(value: Any) -> Iterator[str]:
    """Returns an iterator over the strings of a JSON value, with objects as lists of pairs.

    In this form a name may occur twice in an object.
    """
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
