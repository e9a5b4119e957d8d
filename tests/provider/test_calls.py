"""Whatever a host does, text and key stay secret; time, size and money stay within limits."""

import gzip
import json
import re
import socket
import threading
import time

import jax.numpy as jnp
import pytest
from hosts import choice, completion, host, http, saying

from fedjax_post.core.access import Access
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.provider import hosted
from fedjax_post.provider.address import check_url, read_key, without_key
from fedjax_post.provider.calls import BudgetError, LostError, ProviderError
from fedjax_post.provider.hosted import connect
from fedjax_post.provider.line import Line
from fedjax_post.provider.terms import Terms, check_terms

KEY = "sk-a-key-of-mine"
PRIVATE = "sort: pear fig\n"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("builtin")


@pytest.fixture
def ask(tokenizer, monkeypatch, tmp_path):
    """Asks a host one question, in one visit of a client; returns the model that was asked."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def go(url, *, scores=False, journal=tmp_path / "journal.jsonl", texts=(PRIVATE,), **terms):
        model = connect(
            url, "m", tokenizer, terms=Terms(**{"max_retries": 0, "timeout": 5.0} | terms),
            journal=journal,
        )  # fmt: skip
        rows = [tokenizer(text)["input_ids"] for text in texts]
        prompts = jnp.array(rows, jnp.int32)
        visit = model.at(0, 3)
        if scores:
            visit.next_scores({}, prompts, prompts >= 0, jnp.array([5, 6]))
        else:
            visit.answer({}, prompts, prompts >= 0, max_new_tokens=8, eos_id=1, pad_id=2)
        return model

    return go


@pytest.mark.heavy
def test_a_host_hears_the_question_and_the_key_and_nothing_else(ask):
    with host(saying(completion())) as (url, heard):
        ask(url)
    (request,) = heard
    names = re.findall(r"(?m)^([\w-]+):", request.head)
    assert {name.lower() for name in names} == {
        "host", "user-agent", "accept-encoding", "authorization", "content-type", "content-length",
    }  # fmt: skip
    assert f"authorization: bearer {KEY}" in request.head.lower()
    assert json.loads(request.body) == {
        "model": "m", "temperature": 0, "prompt": [PRIVATE], "max_tokens": 8, "user": "client-3",
    }  # fmt: skip


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(ask, status):
    with host(saying(completion())) as (other, elsewhere):
        headers = [f"Location: {other}/completions?{KEY}"]
        answer = http(b"", status=f"{status} Elsewhere", headers=headers)
        with (
            host(saying(answer)) as (url, heard),
            pytest.raises(ProviderError, match=f"{status}, a redirect to '{other}") as caught,
        ):
            ask(url, on_failure="drop")
    assert (len(heard), elsewhere) == (1, [])
    assert KEY not in str(caught.value)
    assert not caught.value.drop


def test_proxies_of_the_environment_hear_nothing(ask, monkeypatch):
    with host(saying(completion())) as (proxy, elsewhere), host(saying(completion())) as (url, _):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        ask(url)
    assert elsewhere == []


def drip(piece: bytes, before: bytes = b""):
    """Sends a little, again and again."""

    def say(connection, heard):
        connection.sendall(before)
        while True:
            connection.sendall(piece)
            time.sleep(0.02)

    return say


@pytest.mark.parametrize(
    "say",
    [
        drip(b" ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        drip(b"1\r\n \r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        drip(b"X-More: 1\r\n", b"HTTP/1.1 200 OK\r\n"),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda connection, heard: time.sleep(5),
    ],
    ids=["body", "chunks", "head", "continue", "silence"],
)
def test_a_call_ends_in_time_however_slowly_bytes_drip(ask, say):
    began = time.monotonic()
    with (
        host(say) as (url, _),
        pytest.raises(ProviderError, match=r"no whole answer within 0\.4 s") as caught,
    ):
        ask(url, timeout=0.4)
    assert time.monotonic() - began < 4
    assert caught.value.may_be_paid


def test_a_host_that_does_not_read_holds_a_call_no_longer():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        line = Line(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", headers={}, timeout=0.4)
        began = time.monotonic()
        with pytest.raises(LostError, match=r"within 0\.4 s"):
            line.post("/completions", b" " * (64 << 20))
    assert time.monotonic() - began < 10


def test_an_answer_that_is_too_large_is_not_taken_in(ask):
    sent = []

    def say(connection, heard):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range(60):
            connection.sendall(piece)
            sent.append(len(piece))

    with host(say) as (url, _), pytest.raises(ProviderError, match="of more than 8388608 bytes"):
        ask(url)
    assert sum(sent) < 30 << 20


def test_a_compressed_answer_is_refused_unread(ask):
    bomb = gzip.compress(b" " * (30 << 20))
    answer = http(bomb, headers=["Content-Encoding: gzip"])
    with host(saying(answer)) as (url, _), pytest.raises(ProviderError, match="coded as 'gzip'"):
        ask(url)


@pytest.mark.parametrize(
    "answer",
    [
        completion(choice(f"the key is {KEY}.")),
        completion(model=f"m {KEY}", system_fingerprint=KEY),
        http({"error": {"message": f"no {KEY}", "code": KEY}}, status="400 Bad"),
        http(f"<h1>{KEY}\x1b[2J</h1>".encode(), status="500 Oops"),
        http({"error": {"message": f"no {KEY}"}}, status="401 No"),
        http({"choices": [{"text": {KEY: KEY}, "index": 0}]}),
    ],
)
def test_an_answer_that_repeats_the_key_does_not_spread_it(ask, tmp_path, answer):
    error = ""
    with host(saying(answer)) as (url, _):
        try:
            ask(url)
        except ProviderError as caught:
            error = str(caught)
    assert KEY not in error + (tmp_path / "journal.jsonl").read_text()
    assert error.isprintable()


def test_a_placeholder_is_no_secret():
    assert without_key("an EMPTY basket", "EMPTY") == "an EMPTY basket"
    assert without_key({"a": [f"x{KEY}y"]}, KEY) == {"a": ["x(key)y"]}


@pytest.mark.parametrize("key", ["sk-a key", "sk-a\nX-Other: b", "sk-é"])
def test_a_key_that_no_request_can_carry_is_not_shown(key):
    with pytest.raises(ValueError, match="OPENAI_API_KEY contains characters") as caught:
        read_key({"OPENAI_API_KEY": key})
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:80", "is no address; write http://host:port/v1"),
        ("ftp://host/v1", "is no address"),
        ("http://ho st/v1", "is no address"),
        ("http://host:99999/v1", "is no address"),
        ("https://", "is no address"),
        ("https://me:sesame@host/v1", "more than the address of 'host'"),
        ("https://host/v1?key=sesame", "more than the address of 'host'"),
        ("http://127.0.0.1\\@host/v1", "more than the address of 'host'"),
        ("http://host/v1", "would send the key in OPENAI_API_KEY unencrypted; write https://"),
        ("http://127.evil.example/v1", "unencrypted"),
    ],
)
def test_addresses_that_will_not_do_are_refused(url, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        check_url(url, has_key=True)
    assert "sesame" not in str(caught.value)


def test_a_key_may_go_over_https_or_stay_here():
    for url in ("https://host/v1", "http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]"):
        assert not check_url(url, has_key=True)
    assert check_url("http://host/v1", has_key=False)


def test_texts_in_clear_between_machines_are_told(tokenizer, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.warns(UserWarning, match="texts are sent unencrypted"):
        connect("http://192.0.2.1/v1", "m", tokenizer)


NAN = float("nan")
UNSAID = [
    None, {}, {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": True},
    {"prompt_tokens": -5, "completion_tokens": -9, "cost": -1.0}, [1], "free",
    {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0}, {"prompt_tokens": 10**400},
    {"prompt_tokens": "many", "cost": "none"}, {"prompt_tokens": NAN, "cost": NAN},
    {"prompt_tokens": 1.5, "cost": True},
]  # fmt: skip


@pytest.mark.parametrize("usage", UNSAID, ids=str)
def test_a_bill_that_says_nothing_leaves_one_s_own_count(ask, tokenizer, usage):
    prices = {"price_prompt": 1e6, "price_completion": 2e6}
    with host(saying(http({"choices": [choice()], "usage": usage}))) as (url, _):
        spent = ask(url, **prices).spent()
    answers = len(tokenizer("pear", add_special_tokens=False)["input_ids"]) + 1
    assert spent.prompt_tokens == len(tokenizer(PRIVATE)["input_ids"])
    assert spent.completion_tokens == answers
    assert spent.cost == spent.prompt_tokens + 2 * answers


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 1000, "completion_tokens": 0}, {"cost": 1000.0}, {"cost": 1000}]
)
def test_a_larger_bill_counts(ask, usage):
    prices = {"price_prompt": 1e6, "price_completion": 2e6}
    with host(saying(completion(usage=usage))) as (url, _):
        assert ask(url, **prices).spent().cost >= 1000


def test_no_bill_lets_more_calls_through_than_the_budget(ask, tokenizer):
    prompts = len(tokenizer(PRIVATE)["input_ids"])
    terms = {"price_prompt": 1e6, "price_completion": 1e6, "max_cost": 16.0 * (prompts + 8) + 16}
    said = {"message": {"content": " ".join(["pear"] * 8)}, "finish_reason": "length", "index": 0}
    free = http({"choices": [said], "usage": None})
    with (
        host(saying(free)) as (url, heard),
        pytest.raises(BudgetError, match="^max_cost=") as caught,
    ):
        ask(url, style="chat", texts=[PRIVATE] * 40, **terms)
    assert 12 <= len(heard) <= 16
    assert not caught.value.may_be_paid


def test_calls_at_the_same_time_do_not_pass_a_budget_together(tokenizer):
    everybody = threading.Barrier(3)

    def say(connection, heard):
        everybody.wait(10)
        connection.sendall(completion())

    errors = []

    def one(client):
        asked = jnp.array([tokenizer(PRIVATE)["input_ids"]], jnp.int32)
        try:
            model.at(0, client).answer({}, asked, asked >= 0, max_new_tokens=8, eos_id=1, pad_id=2)
        except BudgetError as error:
            errors.append(error)

    with host(say) as (url, heard):
        model = connect(url, "m", tokenizer, terms=Terms(max_queries=3), access=Access.TEXT)
        threads = [threading.Thread(target=one, args=[client]) for client in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(heard), len(errors)) == (3, 5)


def test_what_is_sent_once_more_counts_again(ask):
    throttled = http({"error": {"message": "later"}}, status="429 Slow", headers=["Retry-After: 0"])
    with host(saying(throttled)) as (url, heard), pytest.raises(BudgetError, match="3 queries are"):
        ask(url, max_retries=9, max_queries=3)
    assert len(heard) == 3
    with host(saying(throttled, completion())) as (url, heard):
        spent = ask(url, journal=None, max_retries=9, max_queries=3).spent()
    assert (spent.sent, spent.queries, spent.calls, spent.failed) == (2, 1, 1, 0)


@pytest.mark.parametrize(
    ("wait", "calls"), [("nan", 2), ("-3", 2), ("inf", 1), ("1e9", 1), ("soon", 2), ("0", 2)]
)
def test_a_wait_that_is_absurd_is_not_kept(ask, monkeypatch, wait, calls):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    throttled = http(b"", status="429 Slow", headers=[f"Retry-After: {wait}"])
    with host(saying(throttled)) as (url, heard), pytest.raises(ProviderError, match="429"):
        ask(url, max_retries=1)
    assert len(heard) == calls


def test_without_the_extra_it_is_named(tokenizer, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "httpcore2", None)
    monkeypatch.delitem(sys.modules, "fedjax_post.provider.line", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'fedjax_post\[hosted\]'"):
        hosted.connect("http://127.0.0.1:9/v1", "m", tokenizer)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"style": "edits"}, "style must be one of"),
        ({"on_failure": "ignore"}, r"on_failure must be one of \('stop', 'drop'\)"),
        ({"max_queries": 0}, "max_queries must be a number of at least 1, got 0"),
        ({"timeout": float("inf")}, "timeout must be a number of at least 0.001, got inf"),
        ({"price_prompt": float("nan")}, "price_prompt must be a number of at least 0, got nan"),
        ({"price_prompt": 1.0}, "come together"),
        ({"max_cost": 5.0}, "max_cost=5 needs prices.*give `price`"),
        ({"max_cost": 5.0, "price_prompt": 0, "price_completion": 0}, "give `price`"),
    ],
)
def test_terms_that_cannot_be_kept_are_refused(terms, message):
    with pytest.raises(ValueError, match=message):
        check_terms(Terms(**terms), access=Access.TEXT)
