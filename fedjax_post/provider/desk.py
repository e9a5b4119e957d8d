"""What a provider does for a request: the operation of each method and address."""

import re
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from fedjax_post.provider import job_requests, listing
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.service import Provider


class Incoming(NamedTuple):
    """A request that has arrived."""

    request: str  # its id
    content: bytes = b""
    content_type: str = ""
    query: Mapping[str, str] = {}


class Operation(NamedTuple):
    """What is done for requests to an address."""

    run: Callable[[Incoming], Any]  # returns JSON, or a list of pieces; may raise Refusal
    kind: str  # with which ids of its requests begin
    waits: bool = False  # whether the provider's latency is added


def find(provider: Provider, method: str, path: str) -> Operation:
    """Returns the operation of a method and an address.

    Args:
      provider: that is asked.
      method: GET, POST or DELETE.
      path: without query, such as /v1/models.

    Raises:
      Refusal: 404, if there is none.
    """
    for wanted, pattern, run, kind in _OPERATIONS:
        found = re.fullmatch(pattern, path)
        if found and method == wanted:
            do = run if method == "GET" else partial(_change, run)
            return Operation(partial(do, provider, *found.groups()), kind, run is _answer)
    what = f"There is no {method} {path[:200]}; see /v1/models."
    raise Refusal(404, what, code="not_found")


def fresh_id(operation: Operation) -> str:
    """Returns the id of a request."""
    return f"{operation.kind}-{uuid.uuid4().hex}"


def _change(run: Callable, provider: Provider, *given: Any) -> Any:
    """Does what changes something, after a check that the address has no parameters."""
    incoming: Incoming = given[-1]
    with provider.logged(incoming.request):
        listing.check_query(incoming.query)
    return run(provider, *given)


def _answer(provider: Provider, kind: str, incoming: Incoming) -> Any:
    request, chat = incoming.request, kind == "chat/"
    return provider.answer(incoming.content, chat=chat, request=request)


def _models(provider: Provider, incoming: Incoming) -> Any:
    listing.check_query(incoming.query)
    return {"object": "list", "data": [_card(name) for name in provider.models()]}


def _model(provider: Provider, name: str, incoming: Incoming) -> Any:
    listing.check_query(incoming.query)
    if name not in provider.models():
        raise provider.no_model(name)
    return _card(name)


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "fedjax_post", "created": 0}


def _upload(provider: Provider, incoming: Incoming) -> Any:
    return provider.upload(
        incoming.content, content_type=incoming.content_type, request=incoming.request
    )


def _files(provider: Provider, incoming: Incoming) -> Any:
    return provider.files.page(incoming.query)


def _file(provider: Provider, id: str, incoming: Incoming) -> Any:
    listing.check_query(incoming.query)
    return provider.files.get(id).card


def _delete(provider: Provider, id: str, incoming: Incoming) -> Any:
    return provider.delete(id, request=incoming.request)


def _tune(provider: Provider, incoming: Incoming) -> Any:
    return provider.tune(incoming.content, request=incoming.request)


def _jobs(provider: Provider, incoming: Incoming) -> Any:
    return provider.jobs.page(incoming.query)


def _job(provider: Provider, id: str, incoming: Incoming) -> Any:
    listing.check_query(incoming.query)
    return provider.jobs.get(id).card


def _events(provider: Provider, id: str, incoming: Incoming) -> Any:
    return provider.jobs.events(id, incoming.query)


def _cancel(provider: Provider, id: str, incoming: Incoming) -> Any:
    return provider.cancel(id, request=incoming.request)


_JOBS, _ID = job_requests.PATH, "([^/]+)"
# method, pattern of the address, operation, and with what ids of its requests begin
_OPERATIONS: tuple[tuple[str, str, Callable, str], ...] = (
    ("POST", "/v1/()completions", _answer, "cmpl"),
    ("POST", "/v1/(chat/)completions", _answer, "chatcmpl"),
    ("GET", "/v1/models", _models, "req"),
    ("GET", "/v1/models/(.+)", _model, "req"),
    ("POST", "/v1/files", _upload, "req"),
    ("GET", "/v1/files", _files, "req"),
    ("GET", f"/v1/files/{_ID}", _file, "req"),
    ("DELETE", f"/v1/files/{_ID}", _delete, "req"),
    ("POST", _JOBS, _tune, "req"),
    ("GET", _JOBS, _jobs, "req"),
    ("GET", f"{_JOBS}/{_ID}", _job, "req"),
    ("GET", f"{_JOBS}/{_ID}/events", _events, "req"),
    ("POST", f"{_JOBS}/{_ID}/cancel", _cancel, "req"),
)
