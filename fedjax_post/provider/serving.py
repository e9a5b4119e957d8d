"""Runs the HTTP server of a provider in this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from fedjax_post.provider.app import EXTRA, make_app
from fedjax_post.provider.service import Provider

_SECONDS = 20.0  # time limit for the headers of a request to arrive
_CONNECTIONS = 512  # maximum number of connections and requests; others are answered 503


@contextlib.contextmanager
def serve(provider: Provider, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Returns a context that serves a provider from a thread, and its base URL `http://.../v1`.

    Args:
      provider: that answers.
      host: address to listen at.
      port: 0 takes a free one.

    Raises:
      ImportError, OSError: as `prepare`.
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
        provider.close()


def prepare(provider: Provider, *, host: str, port: int) -> tuple[Any, socket.socket, str]:
    """Returns a server that is not running yet, its listening socket and its base URL.

    Args:
      provider: that answers.
      host: address to listen at.
      port: 0 takes a free one.

    Raises:
      ImportError: if the extra `hosted` is not installed.
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
        listener.listen()  # connections made before the server runs wait
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno,
            f"port={port} at host={host}: {error.strerror}; `port=0` takes a free one",
        ) from None
    config = uvicorn.Config(
        make_app(provider),
        http=_make_protocol(),
        log_level="warning",
        lifespan="off",
        proxy_headers=False,  # log the real address of a peer, not one that it claims
        limit_concurrency=_CONNECTIONS,
    )
    return uvicorn.Server(config), listener, f"http://{host}:{listener.getsockname()[1]}/v1"


def _make_protocol() -> type:
    """Returns uvicorn's HTTP protocol, which also closes connections without a request."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self._look_after(self.scope)

        def _look_after(self, scope):
            self.loop.call_later(_SECONDS, self._look, scope)

        def _look(self, scope):
            if self.transport.is_closing():
                return
            if self.conn.their_state is h11.IDLE and self.scope is scope:
                self.transport.close()
            else:
                self._look_after(self.scope)

    return Impatient
