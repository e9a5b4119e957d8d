"""The ASGI application of a provider.

Requests without the key, or with a declared size above the limit, are refused before the body is
read.
"""

import uuid
from functools import partial
from typing import Any

from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.service import Provider

EXTRA = "install the extra: pip install 'fedjax_post[hosted]'"
_SECONDS = 30.0  # time limit for a body to arrive


def make_app(provider: Provider) -> Any:
    """Returns the ASGI application (Starlette) of a provider.

    Raises:
      ImportError: if the extra `hosted` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(f"a provider is served by starlette; {EXTRA}") from error
    ask, models = partial(_ask, provider=provider), partial(_models, provider=provider)
    routes = [
        Route("/v1/completions", partial(ask, chat=False), methods=["POST"]),
        Route("/v1/chat/completions", partial(ask, chat=True), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", models),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={404: _not_found, 405: _not_found, Exception: _internal_error},
    )


async def _ask(request: Any, *, provider: Provider, chat: bool) -> Any:
    import anyio
    from starlette.responses import JSONResponse

    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    try:
        content = await _receive(request, provider, name)
    except Refusal as refusal:
        write = partial(provider.log.write_outcome, name, status=refusal.status)
        await anyio.to_thread.run_sync(partial(write, error=str(refusal)))
        return _refusal_response(refusal, is_read=False)
    try:
        await anyio.sleep(provider.settings.latency)
        # Work that has begun is finished, logged and charged, even if the client disconnects.
        work = partial(provider.answer, content, chat=chat, request=name)
        return JSONResponse(await anyio.to_thread.run_sync(work))
    except Refusal as refusal:
        return _refusal_response(refusal)


async def _models(request: Any, *, provider: Provider) -> Any:
    from starlette.responses import JSONResponse

    name, wanted = provider.served.name, request.path_params.get("name")
    card = {"id": name, "object": "model", "owned_by": "fedjax_post", "created": 0}
    try:
        provider.check_key(request.headers.get("authorization", ""))
        if wanted not in (None, name):
            raise provider.no_model(wanted)
    except Refusal as refusal:
        return _refusal_response(refusal)
    return JSONResponse({"object": "list", "data": [card]} if wanted is None else card)


async def _not_found(request: Any, error: Exception) -> Any:
    del error
    what = f"There is no {request.method} {request.url.path[:200]}; see /v1/models."
    return _refusal_response(Refusal(404, what, code="not_found"), is_read=False)


async def _internal_error(request: Any, error: Exception) -> Any:
    del request, error  # the server prints the error; clients do not need to see it
    return _refusal_response(
        Refusal(500, "The server failed.", code="internal_error"), is_read=False
    )


def _refusal_response(refusal: Refusal, *, is_read: bool = True) -> Any:
    from starlette.responses import JSONResponse

    # An unread body would be interpreted as the next request.
    headers = refusal.headers | ({} if is_read else {"connection": "close"})
    return JSONResponse(refusal.body, refusal.status, headers=headers)


async def _receive(request: Any, provider: Provider, name: str) -> bytes:
    """Returns the body of a request after logging it; raises Refusal if it is not accepted."""
    import anyio

    where = {"peer": request.client.host if request.client else "", "endpoint": request.url.path}

    async def note(body: bytes | None, size: int | None) -> None:
        write = lambda: provider.log.write_arrival(name, body=body, size=size, **where)
        await anyio.to_thread.run_sync(write)

    declared = request.headers.get("content-length", "")
    size = int(declared[:20]) if declared.isdecimal() else None
    most = provider.settings.max_bytes
    try:
        provider.check_key(request.headers.get("authorization", ""))
        if size is not None and size > most:
            raise _too_large(most)
    except Refusal:
        await note(None, size)
        raise
    content, status = await _content(request, most)
    await note(content if len(content) <= most else None, len(content))
    if len(content) > most:
        raise _too_large(most)
    if status != 200:
        raise Refusal(status, "The body did not arrive completely.", code="incomplete_body")
    return content


async def _content(request: Any, most: int) -> tuple[bytes, int]:
    """Returns the received part of a body, cut soon after `most` bytes, and 200 if complete."""
    import anyio
    from starlette.requests import ClientDisconnect

    content = bytearray()
    try:
        with anyio.fail_after(_SECONDS):
            async for piece in request.stream():
                content += piece
                if len(content) > most:
                    break
    except TimeoutError:
        return bytes(content), 408
    except ClientDisconnect:
        return bytes(content), 400
    return bytes(content), 200


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"A request may have at most {most} bytes.", code="request_too_large")
