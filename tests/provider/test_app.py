"""A bad caller cannot stop a provider, delay other callers, or stay out of the log."""

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import jax
import pytest

from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.model.views import init_model
from fedjax_post.provider import lines, programs, service, serving
from fedjax_post.provider.log import read_texts
from fedjax_post.provider.served import make_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.testing.models import tiny_config

GOOD = {"model": "tiny", "prompt": "cat", "max_tokens": 1}


@pytest.fixture(scope="module")
def served():
    tokenizer = build_tokenizer()
    config = tiny_config(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                         num_layers=1, num_heads=2, num_kv_heads=1, max_positions=64,
                         bos_id=tokenizer.bos_token_id)  # fmt: skip
    return make_served("tiny", init_model(config, jax.random.key(0)), tokenizer)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def told(log, event):
    return [line for line, _ in lines.read(log, check=lambda _: None) if line["event"] == event]


def post(url, body, *, path="/completions", **headers):
    """Status and JSON of an answer; bodies of bytes are sent as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=30)) as line:
        line.request("POST", parts.path + path, content, headers)
        answer = line.getresponse()
        return answer.status, json.loads(answer.read())


DEEP = b"[" * 100_000 + b"]" * 100_000
ODD = {
    "half": b'{"prompt": "c',
    "empty": b"",
    "list": b"[]",
    "deep": b'{"prompt": ' + DEEP + b"}",
    "nan": b'{"prompt": "cat", "temperature": NaN}',
    "infinite": b'{"prompt": "cat", "max_tokens": 1e999}',
    "long": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "surrogate": b'{"model": "tiny", "prompt": "\\ud800"}',
    "bytes": b'{"prompt": "\xff\xfe"}',
    "twice": b'{"prompt": "cat", "prompt": "dog"}',
    "mixed": b'{"prompt": ["cat", 3]}',
    "tokens": b'{"prompt": [[1, 2], [3]]}',
    "model": b'{"model": {"a": 1}, "prompt": "cat"}',
}


@pytest.mark.parametrize("path", ["/completions", "/chat/completions"])
def test_odd_bodies_are_refused_in_the_format_and_logged_as_they_came(served, log, path):
    with serve(Provider(served, Settings(log=log))) as url:
        for name, body in ODD.items():
            status, answer = post(url, body, path=path)
            assert status in (400, 404), name
            assert set(answer["error"]) == {"message", "type", "param", "code"}
            assert "Error(" not in answer["error"]["message"]
        assert post(url, GOOD)[0] == 200
    arrived = told(log, "arrived")
    raw = [line["body"].encode() if "body" in line else base64.b64decode(line["base64"])
           for line in arrived]  # fmt: skip
    assert raw == [*ODD.values(), json.dumps(GOOD).encode()]
    assert [line["size"] for line in arrived] == list(map(len, raw))
    assert [line["status"] for line in told(log, "settled")] == [400] * 12 + [
        404 if path == "/completions" else 400, 200
    ]  # fmt: skip


def test_the_log_shows_every_text_whatever_it_came_in(served, log):
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}]}
    bodies = [
        {"model": "tiny", "prompt": ["cat", 3, ["mixed"]]}, {"prompt": "x", "stop": ["in a stop"]},
        {"metadata": {"in a name": 1}, "suffix": "in a suffix"}, chat, b'{"half": "in a ha',
        b'{"prompt": "in a first", "prompt": "in a second"}',
    ]  # fmt: skip
    with serve(Provider(served, Settings(log=log))) as url:
        for body in bodies:
            post(url, body)
    texts = "\n".join(read_texts(log))
    for part in (
        "mixed",
        "in a stop",
        "in a name",
        "in a suffix",
        "in parts",
        "in a ha",
        "in a first",
        "in a second",
    ):
        assert part in texts


@pytest.mark.parametrize("key", [None, "", "right", "Basic right", "bearer right", "Bearer wrong"])
def test_without_the_key_no_body_is_read_and_its_size_is_logged(served, log, key):
    headers = {} if key is None else {"Authorization": key}
    with serve(Provider(served, Settings(log=log, api_key="right"))) as url:
        status, answer = post(url, GOOD, **headers)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert post(url, GOOD, Authorization="Bearer right")[0] == 200
    refused, answered = told(log, "arrived")
    assert (refused["body"], refused["size"]) == (None, len(json.dumps(GOOD)))
    assert json.loads(answered["body"]) == GOOD
    assert "right" not in log.read_text()


def test_a_body_that_is_too_large_is_not_taken_in(served, log):
    """Announced, it is not read; in chunks, to the limit."""
    provider = Provider(served, Settings(log=log, max_bytes=1000))
    with serve(provider) as url:
        assert post(url, b" " * 1001)[0] == 413
        host = urlsplit(url).netloc
        with socket.create_connection(host.split(":")) as line:
            line.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n"
                         f"Transfer-Encoding: chunked\r\n\r\n".encode())  # fmt: skip
            line.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
            assert b"413" in line.recv(100)
        with socket.create_connection(host.split(":")) as line:
            line.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n"
                         f"Content-Length: 50000000000\r\n\r\n".encode())  # fmt: skip
            assert b"413" in line.recv(100)
        assert post(url, GOOD)[0] == 200
    sizes = [(line["size"], line["body"] is None) for line in told(log, "arrived")]
    assert sizes == [
        (1001, True),
        (1024, True),
        (50_000_000_000, True),
        (len(json.dumps(GOOD)), False),
    ]
    assert [line["status"] for line in told(log, "settled")] == [413, 413, 413, 200]


def test_a_body_that_does_not_come_is_waited_for_so_long(served, log, monkeypatch):
    monkeypatch.setattr("fedjax_post.provider.app._SECONDS", 0.2)
    with serve(Provider(served, Settings(log=log))) as url:
        host = urlsplit(url).netloc
        with socket.create_connection(host.split(":")) as line:
            line.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n"
                         "Content-Length: 99\r\n\r\nprivate".encode())  # fmt: skip
            assert b"408" in line.recv(100)
        with socket.create_connection(host.split(":")) as line:
            line.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n"
                         "Content-Length: 99\r\n\r\nthen gone".encode())  # fmt: skip
        while len(told(log, "settled")) < 2:
            time.sleep(0.01)
    assert [line["body"] for line in told(log, "arrived")] == ["private", "then gone"]


def test_a_head_that_does_not_come_is_waited_for_so_long(served, monkeypatch):
    monkeypatch.setattr(serving, "_SECONDS", 0.2)
    with serve(Provider(served)) as url:
        host = urlsplit(url).netloc.split(":")
        silent, dripping = (socket.create_connection(host) for _ in range(2))
        with silent, dripping:
            silent.settimeout(5)
            dripping.settimeout(0.05)
            dripping.sendall(b"POST /v1/completions HTTP/1.1\r\n")
            ended = False
            for i in range(100):
                try:
                    dripping.sendall(b"X-%d: 1\r\n" % i)
                    ended = dripping.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    ended = True
                if ended:
                    break
            assert ended
            assert silent.recv(1) == b""
        assert post(url, GOOD)[0] == 200


def test_a_slow_compilation_keeps_nobody_waiting(served, log, monkeypatch):
    """Other shapes are answered meanwhile, and so is what needs no model."""
    compiling, done = threading.Event(), threading.Event()
    real = programs.jax.jit

    def slow(fn):
        if getattr(fn, "keywords", {}).get("max_new_tokens") == 16:
            compiling.set()
            assert done.wait(60)
        return real(fn)

    with serve(Provider(served, Settings(log=log))) as url:
        assert post(url, GOOD)[0] == 200
        with monkeypatch.context() as patch:
            patch.setattr(programs.jax, "jit", slow)
            statuses = []
            ask = lambda: statuses.append(post(url, GOOD | {"max_tokens": 16})[0])
            slowly = threading.Thread(target=ask)
            slowly.start()
            assert compiling.wait(60)
            assert post(url, GOOD)[0] == 200
            host = urlsplit(url).netloc
            with contextlib.closing(http.client.HTTPConnection(host, timeout=30)) as line:
                line.request("GET", "/v1/models")
                assert line.getresponse().status == 200
            assert statuses == []
            done.set()
            slowly.join()
    assert statuses == [200]


def test_a_program_is_compiled_once_and_the_oldest_are_let_go(monkeypatch):
    traced = []

    def fn(x, *, times):
        traced.append((x.shape, times))
        return x * times

    run = programs.Programs().run
    monkeypatch.setattr(programs, "_MOST", 2)
    for size in (1, 2, 1, 3, 1, 2):
        assert run(fn, jax.numpy.ones(size), times=2).sum() == 2 * size
    assert traced == [((1,), 2), ((2,), 2), ((3,), 2), ((2,), 2)]


def test_a_failure_of_the_server_shows_nothing_of_its_inside(served, log, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(service, "complete", broken)
    with serve(Provider(served, Settings(log=log))) as url:
        status, answer = post(url, GOOD)
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert "secret" not in json.dumps(answer)
    (settled,) = told(log, "settled")
    assert (settled["status"], "a secret" in settled["error"]) == (500, True)
    assert settled["request"] in answer["error"]["message"]


def test_after_a_half_line_the_log_goes_on_in_a_new_one(served, log):
    log.write_text('{"event": "arrived", "request": "x", "bo')
    with serve(Provider(served, Settings(log=log))) as url:
        post(url, GOOD)
    half, *whole = log.read_text().splitlines()
    assert half.endswith('"bo')
    assert [json.loads(line)["event"] for line in whole] == ["arrived", "settled"]
    assert "cat" in list(read_texts(log))
    assert log.stat().st_mode & 0o777 == 0o644  # as it was found; a new one is its owner's alone


def test_callers_at_the_same_time_get_the_answers_they_would_have_had(served, log):
    bodies = [GOOD | {"prompt": [text] * n, "logprobs": 2} for n, text in enumerate(
        ("cat", "dog hen", "pig", "cow cat", "hen"), 1)]  # fmt: skip
    with serve(Provider(served, Settings(log=log))) as url:
        alone = [post(url, body)[1]["choices"] for body in bodies]
        together = [None] * 20
        ask = lambda i: together.__setitem__(i, post(url, bodies[i % 5])[1]["choices"])
        threads = [threading.Thread(target=ask, args=[i]) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together == alone * 4
    assert len(told(log, "arrived")) == len(told(log, "settled")) == 25
