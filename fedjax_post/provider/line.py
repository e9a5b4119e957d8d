"""A connection to one host: data are sent to it only, and the size of answers is limited.

It uses httpcore, the layer below the usual HTTP clients, because that has no redirects, no proxies
or credentials from the environment, no cookies and no decompression. The time limit covers a whole
call, from the connection to the last byte, however slowly bytes arrive.
"""

import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from fedjax_post.provider.calls import JSON, Answered, LostError, UnreachedError

try:
    import httpcore2 as httpcore
except ImportError as error:
    raise ImportError(
        "hosted models need httpcore2; install the extra: pip install 'fedjax_post[hosted]'"
    ) from error

MOST_BYTES = 8 << 20  # maximum size of an answer, without its headers
_IDLE = 2.0  # seconds that an idle connection is kept: less than hosts keep it
_PIECE = 16384  # bytes written at a time, between checks of the clock


class Line:
    """Posts to one host, and reads from it.

    Args:
      url: base URL, checked by `address.check_url`.
      headers: sent with every request, including credentials.
      timeout: maximum seconds of a request and its answer together.
      most_bytes: maximum size of an answer.
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

    def post(self, path: str, content: bytes | None, content_type: str = JSON) -> Answered:
        """Returns the answer to a body.

        Args:
          path: appended to the base URL.
          content: the body; None reads by GET.
          content_type: of the body.

        Raises:
          UnreachedError: if nothing was sent.
          LostError: for an answer that is late, incomplete, too large or compressed.
        """
        self._clock.until = time.monotonic() + self._timeout
        headers = self._headers | ({} if content is None else {"Content-Type": content_type})
        method = "GET" if content is None else "POST"
        try:
            with self._pool.stream(
                method, self._url + path, headers=list(headers.items()), content=content
            ) as answer:
                return self._read(answer)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise UnreachedError(str(error) or type(error).__name__) from None
        except (httpcore.TimeoutException, TimeoutError):
            raise LostError(f"gave no whole answer within {self._timeout:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise LostError(f"broke the connection ({error!r})") from None

    def _read(self, answer: Any) -> Answered:
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in answer.headers}
        coding = headers.get("content-encoding", "identity")
        if coding != "identity":
            raise LostError(f"sent an answer coded as {coding[:20]!r}, which was not requested")
        content = bytearray()
        for piece in answer.iter_stream():
            content += piece
            if len(content) > self._most_bytes:
                raise LostError(f"sent an answer of more than {self._most_bytes} bytes")
        return Answered(answer.status, headers, bytes(content))


class _Clock(threading.local):
    """The time at which each thread's call must end."""

    until = 0.0

    def left(self) -> float:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Stream(httpcore.NetworkStream):
    """A connection on which every wait ends at the call's time limit."""

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
    """Connects within the remaining time of a call."""

    def __init__(self, clock: _Clock):
        self._clock, self._sockets = clock, httpcore.SyncBackend()

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        limits = (self._clock.left(), local_address, socket_options)
        return _Stream(self._sockets.connect_tcp(host, port, *limits), self._clock)
