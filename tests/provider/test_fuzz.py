"""Whatever is received, both sides report what is wrong and continue."""

import json
import math
import random
from collections import Counter

import pytest
from oddities import variants

from fedjax_post.disclosure.meter import Carried, Meter
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.provider import journal, service
from fedjax_post.provider.calls import Answered, Caller, Provider, ProviderError
from fedjax_post.provider.journal import Journal, JournalError
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.requests import Query
from fedjax_post.provider.served import Completion, Served
from fedjax_post.provider.service import Settings
from fedjax_post.provider.terms import Terms

NUMBER = 800
KEY = "sk-a-key-of-mine"
TOP = [{" a": -0.2, " b": -3.0}, {" c": -0.1}]
COMPLETION = {
    "id": "1", "model": "m", "system_fingerprint": "fp", "choices": [
        {"text": f" pear {i}", "index": i, "finish_reason": "stop", "logprobs": {
            "tokens": [" a", " c"], "token_logprobs": [-0.2, -0.1], "top_logprobs": TOP}}
        for i in range(2)],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "cost": 0.5},
}  # fmt: skip
CHAT = {
    "model": "m", "choices": [{"index": 0, "finish_reason": "length", "logprobs": {"content": [
        {"token": " a", "logprob": -0.2, "top_logprobs": [{"token": " a", "logprob": -0.2}]}]},
        "message": {"role": "assistant", "content": f"pear {KEY}"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3},
}  # fmt: skip
ERROR = {"error": {"message": f"no {KEY}", "code": "context_length_exceeded", "param": None}}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("builtin")


def count_answers(tokenizer, path, number, *, seed=0):
    """Has a caller read odd answers; what came of them, by name."""
    came = Counter()
    written = Journal(path)
    terms = Terms(max_retries=0, price_prompt=1.0, price_completion=2.0)
    for i, content in enumerate(variants([COMPLETION, CHAT, ERROR], number=number, seed=seed)):
        status = (200, 200, 200, 400, 503, 307, 700)[i % 7]
        answered = Answered(status, {"retry-after": "0"}, content)
        style = ("completions", "chat")[i % 2]
        texts = ("pear",) if style == "chat" else ("pear", "fig")
        caller = Caller(
            Provider("http://here/v1", "m", KEY, lambda path, body, a=answered: a),
            tokenizer, terms=terms._replace(style=style), journal=written,
            meter=Meter(),
        )  # fmt: skip
        try:
            replies = caller.ask(Query(texts, 8, num_top=2), (0, i), 0, Carried(queries=len(texts)))
        except ProviderError as caught:
            message = str(caught)
            came["may be paid" if caught.may_be_paid else "refused"] += 1
            assert KEY not in message
            assert message.isprintable()
        else:
            assert len(replies) == len(texts)
            assert all(math.isfinite(x) for reply in replies for x in reply.top.values())
            came["answered"] += 1
    spent = written.spent()
    assert spent.failed == came["may be paid"] + came["refused"]
    assert math.isfinite(spent.cost)
    if path is not None:
        assert journal.spent(path) == spent
        assert KEY not in path.read_text()
    return came


@pytest.mark.filterwarnings("ignore:the provider's model changed")
def test_odd_answers_are_read_or_are_errors_of_the_provider(tokenizer, tmp_path):
    count_answers(tokenizer, tmp_path / "journal.jsonl", NUMBER // 10)
    came = count_answers(tokenizer, None, NUMBER)
    assert min(came.values()) > NUMBER / 50
    assert len(came) == 3


def odd_requests():
    ask = {"model": "tiny", "prompt": ["cat", "dog"], "max_tokens": 4, "temperature": 0,
           "stop": ["\n"], "logprobs": 2, "user": "client-1"}  # fmt: skip
    chat = {"model": "tiny", "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}  # fmt: skip
    return [ask, chat]


class Templated:
    """A tokenizer's two faces, as a provider uses them."""

    bos_token, bos_token_id = "<s>", 0

    def __call__(self, text, **options):
        text.encode()  # as tokenizers do
        return {"input_ids": [5] * len(text.split())}

    def apply_chat_template(self, messages, **options):
        return "".join(message["content"] for message in messages)


def count_requests(monkeypatch, log, number, *, seed=0):
    """Has a provider answer odd requests; what came of them, by status."""
    said = lambda served, prompts, **asked: [Completion("x", True, 1, [], [], []) for _ in prompts]
    monkeypatch.setattr(service, "complete", lambda *args, **asked: [
        answer._replace(tokens=["x"], log_probs=[-0.5], top=[{"x": -0.5}])
        for answer in said(*args, **asked)])  # fmt: skip
    monkeypatch.setattr(Served, "context", 64)
    served = Served("tiny", None, Templated(), {}, "fp", ["x"], 8, None)
    provider = service.Provider(served, Settings(log=log))
    came = Counter()
    for i, content in enumerate(variants(odd_requests(), number=number, seed=seed)):
        chat = b"messages" in content
        provider.log.write_arrival(f"r{i}", body=content, size=len(content))
        try:
            answer = provider.answer(content, chat=chat, request=f"r{i}")
        except Refusal as refusal:
            answer, status = refusal.body, refusal.status
        else:
            status = 200
        came[status] += 1
        json.dumps(answer, allow_nan=False, ensure_ascii=False).encode()
    if log is not None:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(lines) == 2 * number
    return came


def test_odd_requests_are_answered_or_refused_by_name(monkeypatch, tmp_path):
    came = count_requests(monkeypatch, tmp_path / "log", NUMBER)
    assert set(came) == {200, 400, 404}
    assert min(came.values()) > NUMBER / 50


def count_journals(tokenizer, path, number, *, seed=0):
    """Opens damaged journals; what came of them."""
    count_answers(tokenizer, path, 12)
    good = path.read_bytes()
    came = Counter()
    rng = random.Random(seed)
    for _ in range(number):
        at = rng.randrange(len(good))
        damage = rng.choice((
            good[:at], good[:at] + good[at + 1 :], good[:at] + b"\n" + good[at:],
            good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :],
            good + b"\xff\xfe\n", b"[" * 9999 + b"\n" + good, b"null\n" + good,
        ))  # fmt: skip
        path.write_bytes(damage)
        try:
            Journal(path, ask_again=True)
        except JournalError as caught:
            came["refused" if f"{path}, line " in str(caught) else "unnamed"] += 1
        else:
            assert good.startswith(path.read_bytes())  # less an unfinished line, the same
            came["read"] += 1
    return came


@pytest.mark.filterwarnings("ignore:the provider's model changed")
def test_a_damaged_journal_is_refused_by_line_and_never_misread(tokenizer, tmp_path):
    came = count_journals(tokenizer, tmp_path / "journal.jsonl", 300)
    assert set(came) == {"refused", "read"}
    assert min(came.values()) > 20
