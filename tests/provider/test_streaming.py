"""An answer in pieces is the whole answer, as server-sent events."""

import json
import urllib.request

import openai
import pytest

CHAT = [{"role": "user", "content": "sort: pear fig"}]
TEXTS = ["sort: pear fig apple\n", "reverse: cat dog\n"]


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_has_the_text_and_the_reason_of_the_whole_answer(plain, logprobs):
    asked = {"model": "builtin", "prompt": TEXTS, "max_tokens": 4, "logprobs": logprobs}
    whole = plain.completions.create(**asked)
    pieces = list(plain.completions.create(**asked, stream=True))
    choices = [piece.choices[0] for piece in pieces]
    for one in whole.choices:
        own = [choice for choice in choices if choice.index == one.index]
        assert "".join(choice.text for choice in own) == one.text
        assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + [one.finish_reason]
        told = [choice.logprobs for choice in own if choice.logprobs is not None]
        assert told == ([] if logprobs is None else [one.logprobs])
    assert all(piece.object == "text_completion" for piece in pieces)


def test_a_streamed_chat_ends_with_its_usage_if_asked(plain):
    asked = {"model": "builtin", "messages": CHAT, "max_tokens": 4}
    whole = plain.chat.completions.create(**asked)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *pieces, last = plain.chat.completions.create(**asked, **options)
    deltas = [piece.choices[0].delta for piece in pieces]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage) == ([], whole.usage)
    assert {piece.usage for piece in pieces} == {None}


def test_a_stream_is_events_and_done(plain):
    asked = {"model": "builtin", "prompt": "pear", "max_tokens": 1, "stream": True}
    request = urllib.request.Request(
        f"{plain.base_url}completions", json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(event.startswith(b"data: {") for event in events[:-2])


@pytest.mark.parametrize(
    "options",
    [{"stream_options": {}}, {"stream": True, "stream_options": {"a": 1}},
     {"stream": True, "stream_options": 3},
     {"stream": True, "stream_options": {"include_usage": 1}}],
)  # fmt: skip
def test_options_of_a_stream_that_are_not_honoured_are_refused(plain, options):
    with pytest.raises(openai.BadRequestError) as caught:
        plain.completions.create(model="builtin", prompt="a", max_tokens=1, extra_body=options)
    assert caught.value.param == "stream_options"
