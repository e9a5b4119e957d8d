"""The OpenAI formats: requests for completions and chats as they are read, answers and refusals."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.served import Completion, Served

NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}


class Asked(NamedTuple):
    """A request as it was understood."""

    texts: list[str]
    chat: bool
    max_tokens: int
    stop: tuple[str, ...]
    num_top: int | None
    user: str


def texts_of(body: Any, served: Served, *, chat: bool) -> list[str]:
    """The prompts of a request, however odd the rest of it is; chats as the template has them."""
    if not isinstance(body, dict):
        return []
    if not chat:
        prompt = body.get("prompt")
        found: list[Any] = prompt if isinstance(prompt, list) else [prompt]
        return found if all(isinstance(text, str) for text in found) else []
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        return []
    try:
        return [
            served.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        ]
    except Exception:  # whatever a template makes of what came; `read_request` says what is wrong
        return []


def _is_message(message: Any) -> bool:
    parts = ("role", "content")
    return isinstance(message, dict) and all(isinstance(message.get(part), str) for part in parts)


def read_request(body: Any, texts: list[str], *, most: int, chat: bool) -> Asked:
    """What a request asks for.

    Raises:
      Refusal: 400, naming the parameter.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "The body of a request is a JSON object.", code="invalid_json")
    if not texts:
        what = (
            "`messages` must be a list of {role, content}, for a model with a chat template."
            if chat
            else "`prompt` must be a text or a list of texts, at least one."
        )
        raise Refusal(400, what, code="invalid_value")
    for name, usual in _UNSUPPORTED.items():
        if body.get(name, usual) not in (usual, None):
            what = f"`{name}`={body[name]!r} is not supported here; leave it out."
            raise Refusal(400, what, code="unsupported_value")
    stop = body.get("stop") or ()
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list | tuple) or not all(isinstance(word, str) for word in stop):
        what = f"`stop` must be a text or a list of texts, not {stop!r}."
        raise Refusal(400, what, code="invalid_value")
    room = body.get("max_completion_tokens", body.get("max_tokens"))
    room = (64 if chat else 16) if room is None else room
    num_top = body.get("logprobs")
    if chat:
        num_top = _whole(body.get("top_logprobs") or 0, "top_logprobs") if num_top else None
    if num_top is not None and _whole(num_top, "logprobs") > most:
        what = f"At most {most} log-probabilities are given here, not {num_top}."
        raise Refusal(400, what, code="logprobs_limit")
    user = str(body.get("user") or "")
    return Asked(texts, chat, _whole(room, "max_tokens", 1), tuple(stop), num_top, user)


_UNSUPPORTED = {"temperature": 0, "n": 1, "best_of": 1, "stream": False, "echo": False,
                "suffix": None}  # fmt: skip


def _whole(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        what = f"`{name}` must be a whole number of at least {least}, not {value!r}."
        raise Refusal(400, what, code="invalid_value")
    return value


def response(
    served: Served, asked: Asked, answers: Sequence[Completion], used: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The JSON of an answer; `used` says what each prompt came to, as `NOTHING` does."""
    usage = {name: sum(each[name] for each in used) for name in NOTHING}
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    choice = _chat_choice if asked.chat else _choice
    return {
        "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if asked.chat else "text_completion",
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": served.fingerprint,
        "choices": [
            choice(answer, asked) | {"index": i, "finish_reason": _reason(answer)}
            for i, answer in enumerate(answers)
        ],
        "usage": usage,
    }


def _reason(answer: Completion) -> str:
    return "stop" if answer.ended else "length"


def _choice(answer: Completion, asked: Asked) -> dict[str, Any]:
    if asked.num_top is None:
        return {"text": answer.text, "logprobs": None}
    places = {"tokens": answer.tokens, "token_logprobs": answer.log_probs}
    return {"text": answer.text, "logprobs": {**places, "top_logprobs": answer.top}}


def _chat_choice(answer: Completion, asked: Asked) -> dict[str, Any]:
    # A message is a text of its own: the space behind the prompt is not part of it.
    message = {"role": "assistant", "content": answer.text.removeprefix(" "), "refusal": None}
    if asked.num_top is None:
        return {"message": message, "logprobs": None}
    entry = lambda token, value: {"token": token, "logprob": value, "bytes": None}
    content = [
        {**entry(token, value), "top_logprobs": [entry(*pair) for pair in top.items()]}
        for token, value, top in zip(answer.tokens, answer.log_probs, answer.top, strict=True)
    ]
    return {"message": message, "logprobs": {"content": content, "refusal": None}}
