"""Hosts that answer as a test specifies, byte for byte, and store the requests."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Heard(NamedTuple):
    """A request, as it came."""

    head: str
    body: bytes


def http(body, *, status="200 OK", headers=()) -> bytes:
    """An answer, whole: bytes as they are, anything else as JSON; `host` ends each connection."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
    lines += ["Connection: close", "", ""]  # else a client may ask again on a connection that ends
    return "\r\n".join(lines).encode() + content


@contextlib.contextmanager
def host(say: Callable[[socket.socket, Heard], None]) -> Iterator[tuple[str, list[Heard]]]:
    """A host whose every connection has one request, answered by `say`; its URL, what it heard."""
    heard: list[Heard] = []
    open_sockets: list[socket.socket] = []

    def serve(connection):
        with connection, contextlib.suppress(OSError):
            heard.append(_read(connection))
            say(connection, heard[-1])

    def listen():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                open_sockets.append(connection)
                threading.Thread(target=serve, args=[connection], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", heard
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in open_sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _read(connection: socket.socket) -> Heard:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, body = data.split(b"\r\n\r\n", 1)
    text = head.decode("latin-1")
    length = int(text.lower().partition("content-length:")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return Heard(text, body)


def saying(*answers: bytes) -> Callable[[socket.socket, Heard], None]:
    """Answers in turn, the last one for ever."""
    left = list(answers)

    def say(connection, heard):
        del heard
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return say


def choice(text="pear", index=0, reason="stop", **more):
    """One reply, as completions have it."""
    return {"text": text, "index": index, "finish_reason": reason, "logprobs": None} | more


def completion(*choices, usage=None, **more) -> bytes:
    """An answer in order, of a completion."""
    usage = {"prompt_tokens": 5, "completion_tokens": 2} if usage is None else usage
    return http({"choices": list(choices) or [choice()], "model": "m", "usage": usage} | more)


def seen_by(log) -> list[dict]:
    """What a provider's log says, a line for each prompt of a completion or message of a chat."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    told = {line["request"]: line for line in lines if line["event"] == "settled"}
    seen = []
    for line in lines:
        if line["event"] == "arrived":
            body = json.loads(line["body"])
            prompts = body.get("prompt") or [m["content"] for m in body.get("messages", [])]
            prompts = [prompts] if isinstance(prompts, str) else prompts
            settled = told.get(line["request"], {})
            answers = settled.get("answers", [None] * len(prompts))
            about = {"user": "", "cost": 0, "endpoint": line["endpoint"], **settled}
            seen += [
                about | {"prompt": prompt, "answer": answer}
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
    return seen
