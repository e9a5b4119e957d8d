"""Reads a provider's answer strictly: a complete reply to every prompt, or an error.

Only the bill is read leniently. An invalid number in it is ignored, and the client's own count is
used instead; see `terms`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from fedjax_post.provider.address import without_key
from fedjax_post.provider.requests import Query

_LONGEST = 256  # maximum characters of a token


class MalformedError(Exception):
    """An answer that does not follow the format."""


class Reply(NamedTuple):
    """The reply to one prompt."""

    text: str
    ended: bool  # whether the model ended its answer; else it was cut off at the maximum length
    top: Mapping[str, float] | None = None  # log-probabilities of the most likely first tokens


class Bill(NamedTuple):
    """Tokens and cost of a call, and the model that answered it."""

    prompt_tokens: int  # 0 if the provider does not report it
    completion_tokens: int  # 0 if the provider does not report it
    cost: float | None  # None if unknown
    model: str
    fingerprint: str | None


def read_json(content: bytes, *, key: str = "") -> Any:
    """Returns the value of a JSON text, with the key replaced wherever it is repeated.

    Raises:
      MalformedError: if it is not JSON, nested too deeply, or contains lone surrogates.
    """
    try:
        # NaN and Infinity, which are not JSON, are read as null.
        value = json.loads(content.decode("utf-8"), parse_constant=lambda name: None)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates fail here
        return without_key(value, key)
    except RecursionError:
        raise MalformedError("JSON that is nested too deeply") from None
    except UnicodeError:
        raise MalformedError("text that is not UTF-8, or has lone surrogates") from None
    except ValueError as error:
        raise MalformedError(f"{error}, in place of JSON") from None


def read_answer(answer: Any, query: Query, *, style: str) -> tuple[list[Reply], Bill]:
    """Returns the replies to a query, in order of its texts, and the bill.

    Args:
      answer: the value of the answer's JSON.
      query: that was sent.
      style: completions or chat.

    Raises:
      MalformedError: if a prompt has no reply, or a reply lacks what was requested.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise MalformedError(f"no choices in {_brief(answer)}")
    places = [choice.get("index") for choice in choices]
    wanted = list(range(len(query.texts)))
    if not all(map(is_count, places)) or sorted(places) != wanted:
        raise MalformedError(f"{len(wanted)} prompts were sent, replies are to {_brief(places)}")
    ordered = sorted(choices, key=lambda choice: choice["index"])
    return [_reply(choice, query, style) for choice in ordered], _bill(answer)


def _reply(choice: Mapping[str, Any], query: Query, style: str) -> Reply:
    text, reason = choice.get("text"), choice.get("finish_reason")
    if style == "chat":
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
    if reason == "content_filter":
        raise MalformedError("the answer was withheld by a content filter")
    if not isinstance(text, str) or reason not in ("stop", "length"):
        raise MalformedError(f"a reply of {_brief(text)}, which ended by {_brief(reason)}")
    if len(text) > _LONGEST * query.max_tokens:
        raise MalformedError(
            f"{len(text)} characters in a reply of at most {query.max_tokens} tokens"
        )
    if query.num_top is None:
        return Reply(text, reason == "stop")
    return Reply(text, reason == "stop", _top(choice.get("logprobs"), style))


def _top(found: Any, style: str) -> dict[str, float]:
    """Returns the log-probabilities of the most likely first tokens."""
    if not isinstance(found, dict):
        raise MalformedError("log-probabilities were asked for, and none came")
    top = _top_of_chat(found) if style == "chat" else _top_of_completion(found)
    if not isinstance(top, dict) or not top or not all(map(_is_log_prob, top.values())):
        raise MalformedError(f"log-probabilities {_brief(top)}")
    if sum(map(math.exp, top.values())) > 1.1:  # more than rounding can explain
        raise MalformedError(f"log-probabilities that sum to more than 1: {_brief(top)}")
    return top


def _top_of_completion(found: Mapping[str, Any]) -> Any:
    names = ("top_logprobs", "token_logprobs", "tokens")
    lists = [found[name] for name in names if found.get(name) is not None]
    if not found.get("top_logprobs") or not all(isinstance(each, list) for each in lists):
        raise MalformedError("log-probabilities were asked for, and none came")
    if len(set(map(len, lists))) > 1:
        raise MalformedError(
            f"log-probabilities of {list(map(len, lists))} positions, for one answer"
        )
    return found["top_logprobs"][0]


def _top_of_chat(found: Mapping[str, Any]) -> Any:
    content = found.get("content")
    first = content[0] if isinstance(content, list) and content else None
    entries = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(entries, list):
        raise MalformedError("log-probabilities were asked for, and none came")
    if not all(isinstance(e, dict) and isinstance(e.get("token"), str) for e in entries):
        raise MalformedError(f"log-probabilities {_brief(entries)}")
    return {entry["token"]: entry.get("logprob") for entry in entries}


def _bill(answer: Mapping[str, Any]) -> Bill:
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    model, fingerprint, cost = (
        answer.get("model"), answer.get("system_fingerprint"), usage.get("cost")
    )  # fmt: skip
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompts, answers = (count if is_count(count) else 0 for count in counts)
    return Bill(
        prompt_tokens=prompts,
        completion_tokens=answers,
        cost=float(cost) if is_amount(cost) else None,
        model=model[:200] if isinstance(model, str) else "",
        fingerprint=fingerprint[:200] if isinstance(fingerprint, str) else None,
    )


def is_count(value: Any) -> TypeGuard[int]:
    """Returns whether a JSON value is a count: an integer, not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def is_amount(value: Any) -> TypeGuard[float]:
    """Returns whether a JSON value is an amount of money or time: a number, not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18


def _is_log_prob(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -1e18 < value <= 1e-4


def _brief(value: Any) -> str:
    """Returns a value as one short line for messages."""
    text = repr(value) if isinstance(value, str | int | float | None) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
