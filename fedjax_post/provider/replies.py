"""What a provider's answer says, read with suspicion."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class MalformedError(Exception):
    """An answer that is not what the format promises."""


class Reply(NamedTuple):
    """What came back for one prompt."""

    text: str
    ended: bool  # the model ended its answer; else it was cut off at its longest
    top: Mapping[str, float] | None = None  # log-probabilities of the likeliest first tokens


class Bill(NamedTuple):
    """What a call came to, and who answered it."""

    prompt_tokens: int
    completion_tokens: int
    cost: float | None  # None where nobody says
    model: str
    fingerprint: str | None


def read_answer(answer: Any, query: Any) -> tuple[list[Reply], Bill]:
    """The replies to a query, in its order, and the bill.

    Args:
      answer: what the `openai` client returned, of either style.
      query: what was asked, with `texts` and `num_top`.

    Raises:
      MalformedError: if a prompt has no reply, or a reply lacks what was asked for.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list):
        raise MalformedError(f"no choices in {str(answer)[:80]!r}")
    numbers = sorted(_number(getattr(choice, "index", None)) for choice in choices)
    if numbers != list(range(len(query.texts))):
        raise MalformedError(f"{len(query.texts)} prompts were sent, replies are to {numbers}")
    ordered = sorted(choices, key=lambda choice: choice.index)
    return [_reply(choice, query.num_top) for choice in ordered], _bill(answer)


def _reply(choice: Any, num_top: int | None) -> Reply:
    message = getattr(choice, "message", None)
    text = getattr(choice, "text", None) if message is None else getattr(message, "content", None)
    if choice.finish_reason == "content_filter":
        raise MalformedError("the answer was withheld by a content filter")
    if not isinstance(text, str) or choice.finish_reason not in ("stop", "length"):
        raise MalformedError(f"a reply of {text!r}, which ended by {choice.finish_reason!r}")
    if num_top is None:
        return Reply(text, choice.finish_reason == "stop")
    return Reply(text, choice.finish_reason == "stop", _top(choice))


def _top(choice: Any) -> dict[str, float]:
    found: Any = getattr(choice, "logprobs", None)
    try:
        if getattr(choice, "message", None) is None:
            top = dict(found.top_logprobs[0])
        else:
            top = {entry.token: entry.logprob for entry in found.content[0].top_logprobs}
    except (AttributeError, IndexError, TypeError):
        raise MalformedError("log-probabilities were asked for, and none came") from None
    if not top or not all(_is_log_prob(value) for value in top.values()):
        raise MalformedError(f"log-probabilities {top}")
    return top


def _bill(answer: Any) -> Bill:
    usage = getattr(answer, "usage", None)
    cost = (getattr(usage, "model_extra", None) or {}).get("cost")
    return Bill(
        prompt_tokens=_number(getattr(usage, "prompt_tokens", None) or 0),
        completion_tokens=_number(getattr(usage, "completion_tokens", None) or 0),
        cost=float(cost) if isinstance(cost, int | float) else None,
        model=str(getattr(answer, "model", "")),
        fingerprint=getattr(answer, "system_fingerprint", None),
    )


def _is_log_prob(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value) and value <= 1e-4


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise MalformedError(f"{value!r} in place of a number")
    return value
