"""A provider in this process: the same requests and the same log, without a network.

With it, a run against a provider needs no server. Its files and jobs are kept in memory. A provider
that is made again, as for a resumed run, reads its own log: what it accepted before it takes in
again, so that files and models have the same names and content.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fedjax_post.provider import desk, job_requests
from fedjax_post.provider.calls import JSON, Answered
from fedjax_post.provider.log import Log
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.service import Provider

PEER = "this process"
_MADE = ("/v1/files", job_requests.PATH)  # addresses at which a provider makes something


class Inside:
    """Answers requests to a provider that is made when the first one comes.

    Args:
      make: returns the provider.
    """

    def __init__(self, make: Callable[[], Provider]):
        self._make, self._lock = make, threading.Lock()
        self._provider: Provider | None = None

    def post(self, path: str, content: bytes | None, content_type: str = JSON) -> Answered:
        """Returns the answer to a request, as `calls.Post`."""
        with self._lock:
            provider = self._provider = self._provider or self._make()
        try:
            return Answered(
                200, {}, json.dumps(_do(provider, path, content, content_type)).encode()
            )
        except Refusal as refusal:
            body = json.dumps(refusal.body).encode()
            return Answered(refusal.status, refusal.headers, body)


def _do(provider: Provider, path: str, content: bytes | None, content_type: str) -> Any:
    address, _, query = f"/v1{path}".partition("?")
    method = "GET" if content is None else "POST"
    operation = desk.find(provider, method, address)
    name = desk.fresh_id(operation)
    if content is not None:
        where = {"peer": PEER, "endpoint": address}
        where |= {} if content_type == JSON else {"content_type": content_type}
        provider.log.write_arrival(name, body=content, size=len(content), **where)
    incoming = desk.Incoming(name, content or b"", content_type, dict(parse_qsl(query)))
    return operation.run(incoming)


def restore(provider: Provider, path: str | Path) -> None:
    """Has a provider take in again what it has accepted by its log; returns once jobs have ended.

    Args:
      provider: new, without a log so far; it continues this one.
      path: of the log; a file that does not exist is an empty log.
    """
    for number, made in enumerate(_accepted(Path(path)) if Path(path).exists() else ()):
        request = f"again-{number}"
        if made.endpoint == job_requests.PATH:
            job = provider.tune(made.content, request=request)["id"]
            while provider.jobs.get(job).finished is None:
                time.sleep(0.01)
        else:
            provider.upload(made.content, content_type=made.content_type, request=request)
    provider.log = Log(path)


class _Made(NamedTuple):
    endpoint: str
    content: bytes
    content_type: str


def _accepted(path: Path) -> Iterator[_Made]:
    """Returns an iterator over the accepted uploads and jobs of a log, in order."""
    arrived: dict[str, Any] = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that a killed process left incomplete
            continue
        if entry["event"] == "arrived" and entry["endpoint"] in _MADE:
            arrived[entry["request"]] = entry
        first = arrived.pop(entry["request"], None) if entry["event"] == "settled" else None
        if first is not None and entry["status"] == 200:
            text, code = first.get("body"), first.get("base64")
            content = text.encode() if code is None else base64.b64decode(code)
            yield _Made(first["endpoint"], content, first.get("content_type", JSON))
