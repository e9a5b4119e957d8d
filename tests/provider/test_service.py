"""A provider speaks the OpenAI format, keeps its terms, and logs every request."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from unittest.mock import ANY

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
from hosts import seen_by

from fedjax_post.adapters.prompt import text_prompt
from fedjax_post.experiments import serve_provider
from fedjax_post.hub.prompt import save_prompt
from fedjax_post.model.generate import generate
from fedjax_post.provider import offer
from fedjax_post.provider import served as serving_of
from fedjax_post.provider.codec import decode_after, decode_prompt, encode_after, encode_prompt
from fedjax_post.provider.formats import read_request
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.served import complete, load_served

ROOT = Path(__file__).parent.parent.parent
CHAT = [{"role": "user", "content": "sort: pear fig"}]
TEXTS = ["sort: pear fig apple\n", "reverse: cat dog\n"]


def greedy(served, text, num_new):
    ids = encode_prompt(served.tokenizer, text)
    rows = jnp.array([ids], jnp.int32)
    ends = {"eos_id": served.tokenizer.eos_token_id, "pad_id": 2}
    tokens = generate(served.model, {}, rows, rows >= 0, max_new_tokens=num_new, **ends)
    return ids, np.asarray(tokens)[0].tolist()


@pytest.mark.heavy
def test_completions_are_the_model_s_greedy_ones(plain, served):
    found = plain.completions.create(model="builtin", prompt=TEXTS, max_tokens=6, temperature=0)
    each = [greedy(served, text, 6) for text in TEXTS]
    said = [decode_after(served.tokenizer, ids, tokens) for ids, tokens in each]
    assert [choice.text for choice in found.choices] == said
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.usage.prompt_tokens == sum(len(ids) for ids, _ in each)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    cost = (3.0 * found.usage.prompt_tokens + 5.0 * found.usage.completion_tokens) / 1e6
    assert found.usage.model_extra["cost"] == pytest.approx(cost)
    assert (found.model, found.object) == ("builtin", "text_completion")


@pytest.mark.heavy
def test_log_probabilities_are_the_model_s_own(plain, served):
    found = plain.completions.create(model="builtin", prompt=TEXTS[0], max_tokens=3, logprobs=4)
    ids, tokens = greedy(served, TEXTS[0], 3)
    logits = served.model.logits({}, jnp.array([ids + tokens], jnp.int32))[0, len(ids) - 1 : -1]
    wanted = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    given = found.choices[0].logprobs
    np.testing.assert_allclose(given.token_logprobs, wanted[np.arange(3), tokens], atol=1e-4)
    for top, row in zip(given.top_logprobs, wanted, strict=True):
        best = np.argsort(-row)[:4]
        np.testing.assert_allclose(list(top.values()), row[best], atol=1e-4)
        assert list(top) == [served.token_texts[i] for i in best]


@pytest.mark.heavy
def test_a_chat_goes_through_the_template(plain, served):
    messages = [{"role": "user", "content": TEXTS[0].rstrip("\n")}]
    limits = {"max_tokens": 5, "logprobs": True, "top_logprobs": 2}
    found = plain.chat.completions.create(model="builtin", messages=messages, **limits)
    same = plain.completions.create(model="builtin", prompt=TEXTS[0], max_tokens=5, logprobs=2)
    assert found.choices[0].message.content == same.choices[0].text.removeprefix(" ")
    entries = found.choices[0].logprobs.content
    assert [entry.token for entry in entries] == same.choices[0].logprobs.tokens
    top = {entry.token: entry.logprob for entry in entries[0].top_logprobs}
    assert top == pytest.approx(same.choices[0].logprobs.top_logprobs[0], abs=1e-5)
    assert found.usage.prompt_tokens == same.usage.prompt_tokens


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(plain):
    ask = lambda **more: plain.completions.create(
        model="builtin", prompt=TEXTS[0], max_tokens=8, **more
    )
    whole = ask().choices[0].text
    stop = whole.split()[3]
    found = ask(stop=[stop, "never said"])
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == 4


HONOURED = {"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stop", "user",
            "logprobs", "top_logprobs", "stream", "stream_options"}  # fmt: skip


@pytest.mark.parametrize("kind", ["completions", "chat.completions"])
def test_no_parameter_of_the_official_library_is_passed_over(kind):
    """Each one that is not honoured is refused by its own name, with a value of no type it has."""
    own = openai.resources
    create = {"completions": own.Completions, "chat.completions": own.chat.Completions}[kind].create
    names = set(inspect.signature(create).parameters) - HONOURED
    names -= {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    render_fn = (lambda messages: "text") if kind.startswith("chat") else None
    body = {"messages": CHAT} if render_fn else {"prompt": "pear"}
    assert len(names) > 5
    for name in names:
        with pytest.raises(Refusal) as caught:
            read_request(body | {name: "value"}, most=4, render_fn=render_fn)
        assert (caught.value.code, caught.value.param) == ("unsupported_value", name)


def test_models_are_listed(plain):
    assert [model.id for model in plain.models.list()] == ["builtin"]
    assert plain.models.retrieve("builtin").id == "builtin"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        plain.models.retrieve("other")


@pytest.mark.parametrize(
    ("request_", "status", "code", "message"),
    [
        ({"model": "other"}, 404, "model_not_found", "serves 'builtin'"),
        ({"temperature": 0.5}, 400, "unsupported_value", "temperature"),
        ({"n": 2}, 400, "unsupported_value", "n"),
        ({"stream": 1}, 400, "invalid_value", "`stream` must be true or false"),
        ({"max_tokens": 0}, 400, "invalid_value", "at least 1"),
        ({"max_tokens": "many"}, 400, "invalid_value", '"many"'),
        ({"max_tokens": 10**6}, 400, "context_length_exceeded", "context is"),
        ({"logprobs": 5}, 400, "logprobs_limit", "At most 4"),
        ({"logprobs": -1}, 400, "invalid_value", "at least 0"),
        ({"stop": 3}, 400, "invalid_value", "`stop` must be a text or a list"),
        ({"stop": [""]}, 400, "invalid_value", "`stop` .*none of them empty"),
        ({"stop": ""}, 400, "invalid_value", "`stop` .*none of them empty"),
        ({"stop": ["a"] * 17}, 400, "invalid_value", "`stop` has 17 texts"),
        ({"user": 3}, 400, "invalid_value", "`user` must be a text"),
        ({"logprobs": True}, 400, "invalid_value", "`logprobs` must be a whole number"),
        ({"max_tokens": True}, 400, "invalid_value", "`max_tokens` must be a whole number"),
        ({"prompt": ["a"] * 2049}, 400, "invalid_value", "2049 texts; at most 2048"),
        ({"prompt": "pear" * 10**5}, 400, "context_length_exceeded", "400000 characters"),
        ({"prompt": []}, 400, "invalid_value", "at least one"),
        ({"prompt": [1, 2]}, 400, "invalid_value", "list of texts"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_in_the_format(
    plain, request_, status, code, message
):
    asked = {"model": "builtin", "prompt": "pear", "max_tokens": 1} | request_
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        plain.completions.create(**asked)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    given = set(request_) if code != "context_length_exceeded" else {"prompt"}
    assert {caught.value.param} == given


@pytest.mark.parametrize(
    ("name", "value", "idle"),
    [
        ("top_p", 0.5, 1), ("n", 2, 1), ("best_of", 2, 1), ("temperature", 0.5, 0.0),
        ("presence_penalty", 1, 0), ("frequency_penalty", -1, 0.0), ("logit_bias", {"5": 9}, {}),
        ("echo", True, False), ("suffix", "end", None),
        ("seed", 3, None), ("metadata", {"a": "b"}, None), ("top_k", 5, None),
        ("anything", "else", None),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_name_and_not_passed_over(plain, name, value, idle):
    ask = lambda value: plain.completions.create(
        model="builtin", prompt="pear", max_tokens=1, extra_body={name: value}
    )
    with pytest.raises(openai.BadRequestError, match=f"`{name}`=") as caught:
        ask(value)
    assert (caught.value.code, caught.value.param) == ("unsupported_value", name)
    ask(idle)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"prompt": "pear"}, "prompt"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
        ({"messages": [*CHAT, {"role": "user", "content": 3}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content"),
        ({"messages": [{**CHAT[0], "tool_calls": []}]}, "messages[0].tool_calls"),
    ],
)  # fmt: skip
def test_chats_that_cannot_be_met_are_refused_by_name(plain, given, param):
    with pytest.raises(openai.BadRequestError) as caught:
        plain.chat.completions.create(
            model="builtin", messages=given.get("messages", CHAT), extra_body=given
        )
    assert caught.value.param == param


def test_a_message_that_the_template_leaves_out_is_refused():
    messages = [{"role": "system", "content": "be brief"}, *CHAT]
    last = lambda messages: messages[-1]["content"]
    with pytest.raises(Refusal, match="left out by this model's chat template") as caught:
        read_request({"messages": messages}, most=0, render_fn=last)
    assert caught.value.param == "messages[0]"
    with pytest.raises(Refusal, match="do not suit this model's chat template: 'tool'"):
        read_request({"messages": CHAT}, most=0, render_fn=lambda messages: messages[0]["tool"])


def test_parts_of_text_are_one_text(plain):
    parts = [{"type": "text", "text": "sort: pe"}, {"type": "text", "text": "ar fig"}]
    ask = lambda messages: plain.chat.completions.create(model="builtin", messages=messages)
    whole, joined = ask(CHAT), ask([{"role": "user", "content": parts}])
    assert joined.choices[0].message == whole.choices[0].message
    assert joined.usage == whole.usage


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], "hello", [3]])
def test_chats_that_are_none_are_refused(plain, messages):
    with pytest.raises(openai.BadRequestError, match="`messages` must be a list of"):
        plain.chat.completions.create(model="builtin", messages=messages)


@pytest.mark.parametrize(("path", "data"), [("completions", b"{"), ("completions", b"[]")])
def test_what_is_no_request_is_refused(plain, path, data):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{plain.base_url}{path}", data=data)
    assert caught.value.code == 400
    assert "a JSON object" in json.loads(caught.value.read())["error"]["message"]


def test_the_terms_are_kept_and_what_arrived_is_written_down(asked, served, tmp_path):
    """Also what was refused: it was seen."""
    log = tmp_path / "log"
    client = asked(
        served._replace(name="next", fingerprint="fp_next"),
        log=log, refused_clients=("client-7",), refused_pattern="se+cret", change_after=2,
        shutdown_after=3, price_prompt=1e6,
    )  # fmt: skip
    ask = lambda prompt, **more: client.completions.create(
        model="builtin", prompt=prompt, max_tokens=1, **more
    )
    refused = [
        (openai.PermissionDeniedError, ("pear",), {"user": "client-7"}),
        (openai.BadRequestError, ("my seecret",), {}),
    ]
    for error, given, more in refused:
        with pytest.raises(error):
            ask(*given, **more)
    answers = [ask("pear", user="client-1"), ask(["pear", "dog"]), ask("cat")]
    with pytest.raises(openai.InternalServerError, match="shut down"):
        ask("late")
    assert [a.model for a in answers] == ["builtin", "builtin", "next"]
    assert answers[0].system_fingerprint != answers[2].system_fingerprint == "fp_next"
    lines = seen_by(log)
    assert [line["prompt"] for line in lines] == [
        "pear", "my seecret", "pear", "pear", "dog", "cat", "late"
    ]  # fmt: skip
    assert [line["status"] for line in lines] == [403, 400, 200, 200, 200, 200, 503]
    assert [line["user"] for line in lines][:3] == ["client-7", "", "client-1"]
    assert [line["cost"] for line in lines] == [0, 0, 2, 4, 4, 2, 0]
    assert lines[2]["answer"] == answers[0].choices[0].text
    assert [line["request"] for line in lines[2:]] == [*(answers[i].id for i in (0, 1, 1, 2)), ANY]


def test_a_limit_of_requests_says_when_to_come_again(asked):
    client = asked(rate_limit=(1, 30.0))
    client.completions.create(model="builtin", prompt="pear", max_tokens=1)
    with pytest.raises(openai.RateLimitError, match="1 requests in 30 seconds") as caught:
        client.completions.create(model="builtin", prompt="pear", max_tokens=1)
    assert 25 < int(caught.value.response.headers["retry-after"]) <= 30


def test_a_key_is_asked_for_where_there_is_one(asked):
    client = asked(api_key="right")
    for ask in (
        lambda: client.completions.create(model="builtin", prompt="pear", max_tokens=1),
        client.models.list,
        lambda: client.models.retrieve("builtin"),
    ):
        with pytest.raises(openai.AuthenticationError):
            ask()
    opened = client.with_options(api_key="right")
    opened.completions.create(model="builtin", prompt="pear", max_tokens=1)
    assert [model.id for model in opened.models.list()] == ["builtin"]


def test_prompts_of_many_lengths_share_a_few_programs(served, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        serving_of, "generate",
        lambda model, params, rows, mask, *, max_new_tokens, **ends: shapes.append(
            (rows.shape, max_new_tokens)
        ) or jnp.zeros((len(rows), max_new_tokens), jnp.int32),
    )  # fmt: skip
    for length in range(1, 60):
        complete(served, [[5] * length] * (1 + length % 3), max_tokens=5)
    complete(served, [[5]] * 33, max_tokens=8)
    assert set(shapes) == {((n, width), 8) for n in (1, 2, 4) for width in (32, 64)} | {
        ((16, 32), 8)
    }


@pytest.mark.heavy
def test_a_prompt_fills_the_context_to_the_last_token(served):
    most = served.context
    (found,) = complete(served, [[5] * (most - 3)], max_tokens=3, num_top=1)
    assert len(found.tokens) == found.num_tokens == len(found.top)


def test_an_adapter_is_served_over_its_model(served, tmp_path):
    ids = served.tokenizer("in pear", add_special_tokens=False)["input_ids"]
    save_prompt(tmp_path, served.model, text_prompt(ids))
    over = load_served("builtin", adapter=str(tmp_path))
    assert over.context == served.context - len(ids)
    head, *rest = served.tokenizer(TEXTS[0])["input_ids"]
    wanted = complete(served, [[head, *ids, *rest]], max_tokens=4)
    assert [a.text for a in complete(over, [[head, *rest]], max_tokens=4)] == [
        a.text for a in wanted
    ]


@pytest.mark.parametrize("text", ["pear fig\n", "a  b\n\n c", " two", "", "é ü", "x: (pear) ="])
def test_text_and_tokens_are_one_in_the_tokenizer_s_spelling(served, text):
    tokenizer = served.tokenizer
    ids = encode_prompt(tokenizer, text)
    assert encode_prompt(tokenizer, decode_prompt(tokenizer, ids)) == ids
    said = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    before = encode_prompt(tokenizer, "sort: pear\n")
    assert encode_after(tokenizer, decode_after(tokenizer, before, said)) == said


def test_a_beginning_that_is_spelled_out_is_not_doubled(served):
    assert encode_prompt(served.tokenizer, "<s>pear") == encode_prompt(served.tokenizer, "pear")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model=builtin --change_after=3", "--change_after=N and what follows"),
        ("--model=builtin --then_model=builtin", "--change_after=N and what follows"),
        ("--model=builtin --refuse_pattern=(", r"--refuse_pattern=\(: "),
        ("--model=./nowhere", "--model=./nowhere: there is no such folder"),
        ("--model=builtin --log=/no/such/folder/log", "--log=/no/such/folder/log: its folder"),
        ("--model=builtin --price=3", "Unknown command line flag 'price'.*--help"),
        ("--latency=-1", "--latency=-1: .*non-negative"),
        ("model=builtin", "'model=builtin' is not a flag; write --name=value"),
        ("--model=builtin --host=1.2.3.4", "--port=0 at --host=1.2.3.4: .*--port=0"),
        ("--model=builtin --api_key=sesame", "'api_key'.*api_key_env"),
        ("--model=builtin --api_key_env=NO_SUCH", "--api_key_env=NO_SUCH: there is no key"),
    ],
)
def test_bad_flags_are_refused_in_one_line(capsys, flags, message, monkeypatch, served):
    if "--model=builtin" in flags:
        monkeypatch.setattr(offer, "load_served", lambda name, **_: served)
    assert serve_provider.main(["serve_provider", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "sesame" not in error
    assert re.search(message, error)


@pytest.mark.heavy
def test_the_program_serves_until_it_is_interrupted(tmp_path):
    command = [sys.executable, "-m", "experiments.serve_provider", "--model=builtin"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().split("--provider_url=")[1].split()[0]
            with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
                assert json.loads(answer.read())["data"][0]["id"] == "builtin"
            process.send_signal(signal.SIGINT)
            assert "0 requests were answered" in process.communicate(timeout=30)[0]
            assert process.returncode == 0
        finally:
            process.kill()
