"""The ASGI application of a provider.

Requests without the key, or with a declared size above the limit, are refused before the body is
read.
"""

from functools import partial
from typing import Any

from fedjax_post.provider import desk, streaming
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.service import Provider

EXTRA = "install the extra: pip install 'fedjax_post[hosted]'"
_SECONDS = 30.0  # time limit for a body to arrive
_WORKERS = 512  # threads that answer: all connections, so that none waits for another's compilation


def make_app(provider: Provider) -> Any:
    """Returns the ASGI application (Starlette) of a provider.

    Raises:
      ImportError: if the extra `hosted` is not installed.
    """
    try:
        import anyio
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(f"a provider is served by starlette; {EXTRA}") from error
    serve = partial(_serve, provider=provider, limiter=anyio.CapacityLimiter(_WORKERS))
    return Starlette(
        routes=[Route("/{path:path}", serve, methods=["GET", "POST", "DELETE"])],
        exception_handlers={404: _not_found, 405: _not_found, Exception: _internal_error},
    )


async def _serve(request: Any, *, provider: Provider, limiter: Any) -> Any:
    import anyio

    try:
        operation = desk.find(provider, request.method, request.url.path)
    except Refusal as refusal:
        return _refusal_response(refusal, is_read=False)
    name, content = desk.fresh_id(operation), b""
    try:
        if request.method == "GET":
            provider.check_key(request.headers.get("authorization", ""))
        else:
            content = await _receive(request, provider, name)
    except Refusal as refusal:
        if request.method != "GET":
            write = partial(provider.log.write_outcome, name, status=refusal.status)
            await anyio.to_thread.run_sync(partial(write, error=str(refusal)))
        return _refusal_response(refusal, is_read=request.method == "GET")
    incoming = desk.Incoming(name, content, _content_type(request), dict(request.query_params))
    try:
        if operation.waits:
            await anyio.sleep(provider.settings.latency)
        # Work that has begun is finished, logged and charged, even if the client disconnects.
        work = partial(anyio.to_thread.run_sync, limiter=limiter)
        return _response(await work(operation.run, incoming))
    except Refusal as refusal:
        return _refusal_response(refusal)


def _response(found: Any) -> Any:
    """Returns the response to a request; a list is streamed."""
    from starlette.responses import JSONResponse, StreamingResponse

    if isinstance(found, list):
        return StreamingResponse(streaming.events(found), media_type="text/event-stream")
    return JSONResponse(found)


def _content_type(request: Any) -> str:
    return request.headers.get("content-type", "")


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
    if (content_type := _content_type(request)).startswith("multipart/"):
        where["content_type"] = content_type  # its boundary is needed to read the body

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
