"""The requests of the OpenAI formats, completions and chats, as the asking side writes them."""

from typing import Any, NamedTuple


class Query(NamedTuple):
    """What is asked in one call."""

    texts: tuple[str, ...]  # one for a chat
    max_tokens: int
    stop: tuple[str, ...] = ()
    num_top: int | None = None  # log-probabilities of the likeliest tokens


def write_request(
    query: Query, model: str, *, style: str, user: str | None
) -> tuple[str, dict[str, Any]]:
    """The path of a request, and its body.

    Args:
      query: what is asked.
      model: who is to answer, as the provider calls it.
      style: completions or chat.
      user: whom the provider may know the asking by; None: nobody.
    """
    body: dict[str, Any] = {"model": model, "temperature": 0}
    if query.stop:
        body["stop"] = list(query.stop)
    if user is not None:
        body["user"] = user
    if style == "completions":
        body |= {"prompt": list(query.texts), "max_tokens": query.max_tokens}
        if query.num_top is not None:
            body["logprobs"] = query.num_top
        return "/completions", body
    (text,) = query.texts
    body |= {"messages": [{"role": "user", "content": text}]}
    body |= {"max_completion_tokens": query.max_tokens}
    if query.num_top is not None:
        body |= {"logprobs": True, "top_logprobs": query.num_top}
    return "/chat/completions", body
