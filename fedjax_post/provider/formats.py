"""The OpenAI formats on the server side: reads requests for completions and chats, writes answers.

A field that would change the answer but is not supported is refused by name, never ignored. It may
be absent, null, or have the one value that has no effect.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.provider import soft_prompts
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.served import Completion, Served

NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
MOST_PROMPTS = 2048  # maximum texts in a request, and messages in a chat
_MOST_STOPS = 16
_MOST_USER = 512  # characters


class Asked(NamedTuple):
    """A valid request."""

    texts: list[str]
    chat: bool
    max_tokens: int
    stop: tuple[str, ...]
    num_top: int | None
    user: str
    soft_prompt: str | None = None  # of completions, see `soft_prompts`
    stream: bool = False  # whether the answer is sent in pieces, see `streaming`
    with_usage: bool = False  # whether a last piece has the usage


Render = Callable[[list[dict[str, str]]], str]  # the messages of a chat as one text

_HONOURED = {"model", "user", "stop", "max_tokens", "logprobs", "stream", "stream_options"}
_OF_COMPLETIONS = {"prompt", soft_prompts.FIELD}
_OF_CHATS = {"messages", "max_completion_tokens", "top_logprobs"}
# Values with which an unsupported field has no effect.
_IDLE: Mapping[str, Any] = {
    "temperature": 0, "top_p": 1, "n": 1, "best_of": 1, "echo": False, "presence_penalty": 0,
    "frequency_penalty": 0, "logit_bias": {}, "suffix": "", "store": False, "tools": [],
    "tool_choice": "none", "response_format": {"type": "text"}, "metadata": {},
}  # fmt: skip
_ROLES = ("system", "user", "assistant")


def read_body(content: bytes) -> dict[str, Any]:
    """Returns the JSON object of a request.

    Raises:
      Refusal: 400, for any other body.
    """
    try:
        text = content.decode("utf-8")
        body = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
        json.dumps(body, ensure_ascii=False).encode("utf-8")  # lone surrogates fail here
    except RecursionError:
        raise Refusal(400, "The JSON is nested too deeply.", code="invalid_json") from None
    except UnicodeError:
        what = "The body must be UTF-8, without lone surrogates."
        raise Refusal(400, what, code="invalid_json") from None
    except ValueError as error:
        what = f"The body of a request must be a JSON object: {error}."
        raise Refusal(400, what, code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refusal(400, "The body of a request must be a JSON object.", code="invalid_json")
    return body


def read_request(body: Mapping[str, Any], *, most: int, render_fn: Render | None) -> Asked:
    """Returns a request after checking it.

    Args:
      body: as returned by `read_body`.
      most: maximum number of log-probabilities at each position.
      render_fn: for a chat; may raise any error for messages that it cannot render. None for
        completions.

    Raises:
      Refusal: 400, naming the parameter.
    """
    chat = render_fn is not None
    refuse_others(body, _HONOURED | (_OF_CHATS if chat else _OF_COMPLETIONS))
    texts = _prompts(body) if render_fn is None else [_chat(body, render_fn)]
    user = body.get("user")
    user = "" if user is None else user
    if not isinstance(user, str) or len(user) > _MOST_USER:
        raise invalid("user", f"must be a text of at most {_MOST_USER} characters")
    room = {n: body[n] for n in ("max_tokens", "max_completion_tokens") if body.get(n) is not None}
    if len(room) > 1:
        raise invalid("max_tokens", "and `max_completion_tokens` mean the same; give one")
    rooms = [whole(value, name, 1) for name, value in room.items()]
    max_tokens = rooms[0] if rooms else (64 if chat else 16)
    num_top = _num_top_of_chat(body) if chat else body.get("logprobs")
    if num_top is not None and whole(num_top, "logprobs") > most:
        what = f"At most {most} log-probabilities are available here, not {num_top}."
        param = "top_logprobs" if chat else "logprobs"
        raise Refusal(400, what, code="logprobs_limit", param=param)
    soft = body.get(soft_prompts.FIELD)
    if soft is not None and not isinstance(soft, str):
        raise invalid(soft_prompts.FIELD, "must be a text in base64")
    return Asked(texts, chat, max_tokens, _stops(body), num_top, user, soft, *_streaming(body))


def refuse_others(body: Mapping[str, Any], honoured: set[str]) -> None:
    """Checks that a request has only fields that are honoured, or have no effect.

    Raises:
      Refusal: 400, naming the first other one.
    """
    for name, value in body.items():
        if name in honoured or value is None or (name in _IDLE and _is_same(value, _IDLE[name])):
            continue
        what = f"`{name[:64]}`={brief(value)} is not supported here; leave it out."
        raise Refusal(400, what, code="unsupported_value", param=name[:64])


def _streaming(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """Returns whether the answer is sent in pieces, and whether the last one has the usage."""
    stream, options = body.get("stream"), body.get("stream_options")
    if stream is not None and not isinstance(stream, bool):
        raise invalid("stream", f"must be true or false, not {brief(stream)}")
    if options is None:
        return bool(stream), False
    known = isinstance(options, dict) and options.keys() <= {"include_usage"}
    usage = options.get("include_usage", False) if known else None
    if not stream or not isinstance(usage, bool):
        raise invalid("stream_options", "must be {include_usage: true or false}, with `stream`")
    return True, usage


def renderer(tokenizer: Any) -> Render:
    """Returns the function from the messages of a chat to the prompt of the next answer."""
    options = {"add_generation_prompt": True, "tokenize": False}
    return lambda messages: tokenizer.apply_chat_template(messages, **options)


def _prompts(body: Mapping[str, Any]) -> list[str]:
    prompt = body.get("prompt")
    texts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise invalid("prompt", "must be a text or a list of texts, at least one")
    if len(texts) > MOST_PROMPTS:
        raise invalid("prompt", f"has {len(texts)} texts; at most {MOST_PROMPTS} are allowed")
    return texts


def _chat(body: Mapping[str, Any], render_fn: Render) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_PROMPTS:
        what = f"must be a list of 1 to {MOST_PROMPTS} of {{role, content}}"
        raise invalid("messages", what)
    read = [read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    try:
        text = render_fn(read)
    except Exception as error:  # templates are programs and may raise any error
        what = f"do not suit this model's chat template: {str(error)[:200]}"
        raise invalid("messages", what) from None
    for i, message in enumerate(read):
        if message["role"] == "system" and message["content"].strip() not in text:
            raise invalid(f"messages[{i}]", "is left out by this model's chat template")
    return text


def read_message(message: Any, where: str) -> dict[str, str]:
    """Returns the role and the text of a message.

    Args:
      message: with its content as a text, or as parts of text.
      where: its place, for refusals, such as messages[0].

    Raises:
      Refusal: 400, for anything else.
    """
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise invalid("messages", f"must be a list of {{role, content}}; look at {where}")
    if message["role"] not in _ROLES:
        raise invalid(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    for name, value in message.items():
        if name not in ("role", "content") and value is not None:
            raise invalid(f"{where}.{name[:64]}", "is not supported here; leave it out")
    content = message["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
        is_text = isinstance(part, dict) and part.keys() == {"type", "text"}
        if not is_text or part["type"] != "text" or not isinstance(part["text"], str):
            raise invalid(f"{where}.content", "must be a text, or a list of {type: text, text}")
    return {"role": message["role"], "content": "".join(part["text"] for part in parts)}


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise invalid("stop", "must be a text or a list of texts, none of them empty")
    if len(stops) > _MOST_STOPS:
        raise invalid("stop", f"has {len(stops)} texts; at most {_MOST_STOPS} are allowed")
    return tuple(stops)


def _num_top_of_chat(body: Mapping[str, Any]) -> int | None:
    wanted, num_top = body.get("logprobs"), body.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise invalid("logprobs", "must be true or false in a chat")
    if num_top is not None and not wanted:
        raise invalid("top_logprobs", "needs `logprobs`: true")
    return whole(num_top or 0, "top_logprobs") if wanted else None


def whole(value: Any, name: str, least: int = 0) -> int:
    """Returns a whole number of at least `least`; raises Refusal, naming the parameter."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise invalid(name, f"must be a whole number of at least {least}, not {brief(value)}")
    return value


def invalid(param: str, what: str) -> Refusal:
    """Returns the refusal of a parameter's value."""
    return Refusal(400, f"`{param}` {what}.", code="invalid_value", param=param)


def _is_same(value: Any, idle: Any) -> bool:
    return isinstance(value, bool) == isinstance(idle, bool) and value == idle


def brief(value: Any) -> str:
    """Returns a JSON value as one short line."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is given twice")
    return found


def response(
    served: Served,
    asked: Asked,
    answers: Sequence[Completion],
    *,
    usage: Mapping[str, Any],
    request: str,
) -> dict[str, Any]:
    """Returns the JSON of an answer.

    Args:
      served: the model that answered.
      asked: the request.
      answers: one for each prompt.
      usage: tokens and cost, with the keys of `NOTHING`.
      request: id of the request.
    """
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    choice = _chat_choice if asked.chat else _choice
    extension = {} if asked.soft_prompt is None else {soft_prompts.FIELD: True}
    return extension | {
        "id": request,
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": served.fingerprint,
        "choices": [
            choice(answer, asked) | {"index": i, "finish_reason": _reason(answer)}
            for i, answer in enumerate(answers)
        ],
        "usage": {**usage, "total_tokens": total},
    }


def _reason(answer: Completion) -> str:
    return "stop" if answer.ended else "length"


def _choice(answer: Completion, asked: Asked) -> dict[str, Any]:
    if asked.num_top is None:
        return {"text": answer.text, "logprobs": None}
    places = {"tokens": answer.tokens, "token_logprobs": answer.log_probs}
    return {"text": answer.text, "logprobs": {**places, "top_logprobs": answer.top}}


def _chat_choice(answer: Completion, asked: Asked) -> dict[str, Any]:
    # A message is a separate text, so the space after the prompt is not part of it.
    message = {"role": "assistant", "content": answer.text.removeprefix(" "), "refusal": None}
    if asked.num_top is None:
        return {"message": message, "logprobs": None}
    entry = lambda token, value: {"token": token, "logprob": value, "bytes": None}
    content = [
        {**entry(token, value), "top_logprobs": [entry(*pair) for pair in top.items()]}
        for token, value, top in zip(answer.tokens, answer.log_probs, answer.top, strict=True)
    ]
    return {"message": message, "logprobs": {"content": content, "refusal": None}}
