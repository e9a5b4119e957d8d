"""A provider on the network: the ASGI application, and a server in this process."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.service import Provider

EXTRA = "install the extra: pip install 'fedjax_post[hosted]'"


def make_app(provider: Provider) -> Any:
    """The ASGI application (Starlette) of a provider.

    Raises:
      ImportError: without the extra `hosted`, naming it.
    """
    try:
        import anyio
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(f"a provider is served by starlette; {EXTRA}") from error

    def asking(chat: bool) -> Callable:
        async def handle(request):
            try:
                body = json.loads(await request.body())
            except ValueError:
                body = None
            key = request.headers.get("authorization", "").removeprefix("Bearer ") or None
            peer = request.client.host if request.client else ""
            try:
                await anyio.sleep(provider.settings.latency)
                # Started work is finished, logged and charged, whether or not anybody waits.
                work = lambda: provider.answer(body, chat=chat, key=key, peer=peer)
                return JSONResponse(await anyio.to_thread.run_sync(work))
            except Refusal as refusal:
                return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)

        return handle

    async def models(request):
        del request
        card = {"id": provider.served.name, "object": "model", "owned_by": "fedjax_post"}
        return JSONResponse({"object": "list", "data": [card | {"created": 0}]})

    async def lost(request, error):
        del error
        what = f"There is no {request.method} {request.url.path}; see /v1/models."
        return JSONResponse(Refusal(404, what, code="not_found").body, 404)

    async def broken(request, error):
        del request
        return JSONResponse(Refusal(500, repr(error), code="internal_error").body, 500)

    routes = [
        Route("/v1/completions", asking(chat=False), methods=["POST"]),
        Route("/v1/chat/completions", asking(chat=True), methods=["POST"]),
        Route("/v1/models", models),
    ]
    return Starlette(routes=routes, exception_handlers={404: lost, 405: lost, Exception: broken})


@contextlib.contextmanager
def serve(provider: Provider, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves a provider from a thread of this process; yields its base URL, `http://.../v1`.

    Args:
      provider: who answers.
      host: address to listen at.
      port: 0 takes a free one.
    """
    server, listener, url = prepare(provider, host=host, port=port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def prepare(provider: Provider, *, host: str, port: int) -> tuple[Any, socket.socket, str]:
    """A server that is not running yet, the socket that it is to listen at, and its base URL.

    Raises:
      ImportError: without the extra `hosted`, naming it.
      OSError: if the port is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(f"a provider is served by uvicorn; {EXTRA}") from error
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # who comes before the server runs waits
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno,
            f"--port={port} at --host={host}: {error.strerror}; --port=0 takes a free one",
        ) from None
    config = uvicorn.Config(make_app(provider), log_level="warning", lifespan="off")
    return uvicorn.Server(config), listener, f"http://{host}:{listener.getsockname()[1]}/v1"
