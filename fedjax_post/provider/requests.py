"""Writes the client's requests in the OpenAI formats, completions and chats."""

from typing import Any, NamedTuple

from fedjax_post.provider import soft_prompts


class Query(NamedTuple):
    """The content of one call."""

    texts: tuple[str, ...]  # prompts; exactly one for a chat
    max_tokens: int  # of each answer
    stop: tuple[str, ...] = ()  # texts that end an answer
    num_top: int | None = None  # number of log-probabilities at each position; None: none
    soft_prompt: str | None = None  # before each text, see `soft_prompts`; for completions


def write_request(
    query: Query, model: str, *, style: str, user: str | None
) -> tuple[str, dict[str, Any]]:
    """Returns the path and the body of a request.

    Args:
      query: the content of the call.
      model: its name at the provider.
      style: completions or chat.
      user: name of the user that the provider sees; None: no name.

    >>> write_request(Query(("hello",), 4), "m", style="completions", user=None)[0]
    '/completions'
    """
    body: dict[str, Any] = {"model": model, "temperature": 0}
    if query.stop:
        body["stop"] = list(query.stop)
    if user is not None:
        body["user"] = user
    if style == "completions":
        body |= {"prompt": list(query.texts), "max_tokens": query.max_tokens}
        if query.soft_prompt is not None:
            body[soft_prompts.FIELD] = query.soft_prompt
        if query.num_top is not None:
            body["logprobs"] = query.num_top
        return "/completions", body
    (text,) = query.texts
    body |= {"messages": [{"role": "user", "content": text}]}
    body |= {"max_completion_tokens": query.max_tokens}
    if query.num_top is not None:
        body |= {"logprobs": True, "top_logprobs": query.num_top}
    return "/chat/completions", body
