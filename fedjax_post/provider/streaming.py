"""Answers in pieces: server-sent events, as the OpenAI formats have them.

The model computes an answer as a whole, so that pieces of it arrive together. A client that asks
for `stream` reads the same text, reasons and log-probabilities as from one answer.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"
_PIECE = re.compile(r"\s*\S+|\s+")  # a word with the space before it


def chunks(answer: Mapping[str, Any], *, with_usage: bool) -> Iterator[dict[str, Any]]:
    """Returns an iterator over the pieces of an answer, in the format of its kind.

    Args:
      answer: as `formats.response` returns it.
      with_usage: whether a last piece without choices has the usage.

    >>> answer = {"object": "text_completion", "usage": {}}
    >>> choice = {"index": 0, "text": "a b", "logprobs": None, "finish_reason": "stop"}
    >>> [c["choices"][0]["text"] for c in chunks(answer | {"choices": [choice]}, with_usage=False)]
    ['a', ' b', '']
    """
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    chat = head["object"] == "chat.completion"
    head["object"] = "chat.completion.chunk" if chat else head["object"]
    head |= {"usage": None} if with_usage else {}
    for choice in answer["choices"]:
        for piece in (_of_chat if chat else _of_completion)(choice):
            yield head | {"choices": [{"index": choice["index"], "finish_reason": None} | piece]}
    if with_usage:
        yield head | {"choices": [], "usage": answer["usage"]}


def events(pieces: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Returns an iterator over the bytes of server-sent events, `[DONE]` at the end."""
    for piece in pieces:
        yield f"data: {json.dumps(piece)}\n\n".encode()
    yield DONE


def _of_completion(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for text, logprobs in _pieces(choice["text"], choice["logprobs"]):
        yield {"text": text, "logprobs": logprobs}
    yield {"text": "", "logprobs": None, "finish_reason": choice["finish_reason"]}


def _of_chat(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
    for text, logprobs in _pieces(choice["message"]["content"], choice["logprobs"]):
        yield {"delta": {"content": text}, "logprobs": logprobs}
    yield {"delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}


def _pieces(text: str, logprobs: Any) -> list[tuple[str, Any]]:
    """Returns words; log-probabilities are of tokens, and keep their text in one piece."""
    if logprobs is not None:
        return [(text, logprobs)]
    return [(piece, None) for piece in _PIECE.findall(text)]
