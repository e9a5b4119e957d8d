"""A line to one host: what is sent goes nowhere else, and what comes back is limited.

It stands on httpcore, the layer below the usual HTTP clients, because of what that leaves out:
redirects, proxies and credentials of the environment, cookies, decompression. Time is counted for
the whole of a call, from the connection to the last byte, however slowly bytes drip.
"""

import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from fedjax_post.provider.calls import Answered, LostError, UnreachedError

try:
    import httpcore2 as httpcore
except ImportError as error:
    raise ImportError(
        "a hosted model is asked through httpcore2; install the extra: "
        "pip install 'fedjax_post[hosted]'"
    ) from error

MOST_BYTES = 8 << 20  # of an answer, its head left out
_IDLE = 2.0  # seconds that a connection is kept: less than any host keeps it
_PIECE = 16384  # bytes written at a time, between looks at the clock


class Line:
    """Posts to one host.

    Args:
      url: base address, as `address.check_url` allows it.
      headers: sent with every request, credentials among them.
      timeout: seconds that a request and its answer may take together.
      most_bytes: that an answer may have.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: float,
        most_bytes: int = MOST_BYTES,
    ):
        self._url, self._timeout, self._most_bytes = url.rstrip("/"), timeout, most_bytes
        self._headers = {"User-Agent": "fedjax_post", "Accept-Encoding": "identity", **headers}
        self._clock = _Clock()
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpcore.default_ssl_context() if url.startswith("https:") else None,
            keepalive_expiry=_IDLE,
            network_backend=_Backend(self._clock),
        )

    def post(self, path: str, content: bytes) -> Answered:
        """The answer to a body of JSON.

        Args:
          path: behind the base address.
          content: the body.

        Raises:
          UnreachedError: before anything was sent.
          LostError: for an answer that is late, broken, too large or compressed.
        """
        self._clock.until = time.monotonic() + self._timeout
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            with self._pool.stream(
                "POST", self._url + path, headers=list(headers.items()), content=content
            ) as answer:
                return self._read(answer)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise UnreachedError(str(error) or type(error).__name__) from None
        except (httpcore.TimeoutException, TimeoutError):
            raise LostError(f"gave no whole answer within {self._timeout:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise LostError(f"broke the line ({error!r})") from None

    def _read(self, answer: Any) -> Answered:
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in answer.headers}
        coding = headers.get("content-encoding", "identity")
        if coding != "identity":
            raise LostError(f"sent an answer coded as {coding[:20]!r}, which was not asked for")
        content = bytearray()
        for piece in answer.iter_stream():
            content += piece
            if len(content) > self._most_bytes:
                raise LostError(f"sent an answer of more than {self._most_bytes} bytes")
        return Answered(answer.status, headers, bytes(content))


class _Clock(threading.local):
    """Until when a thread's call may last."""

    until = 0.0

    def left(self) -> float:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Stream(httpcore.NetworkStream):
    """A connection whose every wait ends with the call's time."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock):
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._stream.write(buffer[start : start + _PIECE], self._clock.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._clock.left())
        return _Stream(secured, self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Connects in the time that a call has left."""

    def __init__(self, clock: _Clock):
        self._clock, self._sockets = clock, httpcore.SyncBackend()

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        limits = (self._clock.left(), local_address, socket_options)
        return _Stream(self._sockets.connect_tcp(host, port, *limits), self._clock)
