"""What a provider's answer says, read with suspicion: a whole reply to every prompt, or an error.

Only the bill is read with patience. A number in it that cannot be one says nothing, and the
asking side's own count stands in its place; see `terms`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from fedjax_post.provider.address import without_key
from fedjax_post.provider.requests import Query

_LONGEST = 256  # letters that a token may stand for


class MalformedError(Exception):
    """An answer that is not what the format promises."""


class Reply(NamedTuple):
    """What came back for one prompt."""

    text: str
    ended: bool  # the model ended its answer; else it was cut off at its longest
    top: Mapping[str, float] | None = None  # log-probabilities of the likeliest first tokens


class Bill(NamedTuple):
    """What a call came to, and who answered it."""

    prompt_tokens: int  # 0 where the provider does not say
    completion_tokens: int
    cost: float | None  # None where nobody says
    model: str
    fingerprint: str | None


def read_json(content: bytes, *, key: str = "") -> Any:
    """The value of a JSON text, less the key that it may repeat.

    Raises:
      MalformedError: if it is none, too deep, or holds halves of characters.
    """
    try:
        # NaN and its like, which JSON has not, are as good as nothing.
        value = json.loads(content.decode("utf-8"), parse_constant=lambda name: None)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # halves of characters fail here
        return without_key(value, key)
    except RecursionError:
        raise MalformedError("JSON that is nested too deep") from None
    except UnicodeError:
        raise MalformedError("text that is not UTF-8, or has halves of characters") from None
    except ValueError as error:
        raise MalformedError(f"{error}, in place of JSON") from None


def read_answer(answer: Any, query: Query, *, style: str) -> tuple[list[Reply], Bill]:
    """The replies to a query, in its order, and the bill.

    Args:
      answer: the value of the answer's JSON.
      query: what was asked.
      style: completions or chat.

    Raises:
      MalformedError: if a prompt has no reply, or a reply lacks what was asked for.
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
        raise MalformedError(f"{len(text)} letters in a reply of {query.max_tokens} tokens at most")
    if query.num_top is None:
        return Reply(text, reason == "stop")
    return Reply(text, reason == "stop", _top(choice.get("logprobs"), style))


def _top(found: Any, style: str) -> dict[str, float]:
    """Log-probabilities of the likeliest first tokens."""
    if not isinstance(found, dict):
        raise MalformedError("log-probabilities were asked for, and none came")
    top = _top_of_chat(found) if style == "chat" else _top_of_completion(found)
    if not isinstance(top, dict) or not top or not all(map(_is_log_prob, top.values())):
        raise MalformedError(f"log-probabilities {_brief(top)}")
    if sum(map(math.exp, top.values())) > 1.1:  # not by rounding alone
        raise MalformedError(f"log-probabilities of more than 1 in all: {_brief(top)}")
    return top


def _top_of_completion(found: Mapping[str, Any]) -> Any:
    names = ("top_logprobs", "token_logprobs", "tokens")
    lists = [found[name] for name in names if found.get(name) is not None]
    if not found.get("top_logprobs") or not all(isinstance(each, list) for each in lists):
        raise MalformedError("log-probabilities were asked for, and none came")
    if len(set(map(len, lists))) > 1:
        raise MalformedError(f"log-probabilities of {list(map(len, lists))} places, for one answer")
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
    """Whether a JSON value is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def is_amount(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is an amount of money or time."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18


def _is_log_prob(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -1e18 < value <= 1e-4


def _brief(value: Any) -> str:
    """A value for a message, in one line."""
    text = repr(value) if isinstance(value, str | int | float | None) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
