"""A provider: a model behind the OpenAI completions and chat formats, with its own terms.

What a federation gives up with a hosted model can be measured only against a host that
charges, limits, refuses, changes its model and shuts down; here each of these is a setting.
The log, a line of JSON for every prompt that arrived, is the evidence of what it saw, whether
it answered or not.

Answers are greedy: a temperature above 0, several answers to a prompt, streams and echoes are
refused as unsupported.
"""

import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.provider import formats
from fedjax_post.provider.codec import encode_prompt
from fedjax_post.provider.formats import Asked
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.served import Completion, Served, complete


class Settings(NamedTuple):
    """The terms of a provider."""

    price_prompt: float = 0.0  # for a million tokens
    price_completion: float = 0.0
    rate_limit: tuple[int, float] | None = None  # requests, in so many seconds
    latency: float = 0.0  # seconds that an answer takes longer
    log: str | Path | None = None  # JSON lines; None keeps none
    refused_clients: tuple[str, ...] = ()  # values of `user`
    refused_pattern: str | None = None  # of prompts
    change_after: int | None = None  # answered requests, after which another model answers
    shutdown_after: int | None = None  # answered requests, after which there are no more
    api_key: str | None = None  # None: open to all
    max_logprobs: int = 20


class Provider:
    """What a provider knows: its model, its terms, and what it has answered so far.

    Args:
      served: the model.
      settings: its terms.
      successor: the model that takes over after `settings.change_after` requests; requests
        go on naming the first one, answers name the one that gave them.

    Raises:
      ValueError: if only one of a change and a successor is given, or the pattern is bad.
    """

    def __init__(
        self,
        served: Served,
        settings: Settings = Settings(),  # noqa: B008 - immutable
        *,
        successor: Served | None = None,
    ):
        if (successor is None) != (settings.change_after is None):
            raise ValueError("a change of model needs both its moment and the model that follows")
        try:
            self._pattern = settings.refused_pattern and re.compile(settings.refused_pattern)
        except re.error as error:
            raise ValueError(f"--refuse_pattern={settings.refused_pattern}: {error}") from None
        self.served, self.settings, self._successor = served, settings, successor
        self.num_answered = 0
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()

    def now(self) -> Served:
        """The model that answers the next request."""
        after = self.settings.change_after
        changed = after is not None and self.num_answered >= after
        return self._successor if changed and self._successor else self.served

    def answer(self, body: Any, *, chat: bool, key: str | None, peer: str) -> dict[str, Any]:
        """The answer to a request, logged.

        Args:
          body: the request's JSON.
          chat: whether it came as a chat.
          key: the API key that came with it.
          peer: address of who sent it.

        Raises:
          Refusal: if it is not answered; logged too, since what it held has arrived.
        """
        with self._lock:
            texts = formats.texts_of(body, self.now(), chat=chat)
            head = {
                "time": time.time(),
                "peer": peer,
                "endpoint": "chat" if chat else "completions",
            }
            head["user"] = body.get("user", "") if isinstance(body, dict) else ""
            try:
                self._admit(key)
                served, asked = (
                    self.now(),
                    formats.read_request(body, texts, most=self.settings.max_logprobs, chat=chat),
                )
                prompts = self._accepted(asked, served, body.get("model"))
                answers = complete(
                    served,
                    prompts,
                    max_tokens=asked.max_tokens,
                    stop=asked.stop,
                    num_top=asked.num_top,
                )
            except Refusal as refusal:
                lines = [{"prompt": t, "answer": None, "status": refusal.status} for t in texts]
                self._log([head | line | formats.NOTHING for line in lines])
                raise
            self.num_answered += 1
            used = [_usage(p, a, self.settings) for p, a in zip(prompts, answers, strict=True)]
            self._log(
                head | {"prompt": text, "answer": answer.text, "status": 200, "model": served.name}
                | usage
                for text, answer, usage in zip(texts, answers, used, strict=True)
            )  # fmt: skip
            return formats.response(served, asked, answers, used)

    def _admit(self, key: str | None) -> None:
        settings = self.settings
        if settings.api_key is not None and key != settings.api_key:
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        if settings.shutdown_after is not None and self.num_answered >= settings.shutdown_after:
            raise Refusal(503, "This service has been shut down.", code="service_unavailable")
        if settings.rate_limit is not None:
            most, seconds = settings.rate_limit
            now = time.monotonic()
            while self._recent and now - self._recent[0] >= seconds:
                self._recent.popleft()
            if len(self._recent) >= most:
                until = self._recent[0] + seconds - now if self._recent else seconds
                wait = {
                    "retry-after": str(math.ceil(until)),
                    "retry-after-ms": str(math.ceil(1000 * until)),
                }
                raise Refusal(
                    429,
                    f"Rate limit reached: {most} requests in {seconds:g} seconds.",
                    code="rate_limit_exceeded",
                    headers=wait,
                )
            self._recent.append(now)

    def _accepted(self, asked: Asked, served: Served, name: Any) -> list[list[int]]:
        """The prompts in tokens, if they may be answered."""
        if name != self.served.name:
            what = f"The model {name!r} does not exist; this provider serves {self.served.name!r}."
            raise Refusal(404, what, code="model_not_found")
        if asked.user in self.settings.refused_clients:
            what = f"The user {asked.user!r} is not served here."
            raise Refusal(403, what, code="user_refused")
        if self._pattern and any(self._pattern.search(text) for text in asked.texts):
            what = "A prompt was refused by the content policy of this provider."
            raise Refusal(400, what, code="content_policy_violation")
        prompts = [encode_prompt(served.tokenizer, text) for text in asked.texts]
        most, longest = served.context, max(map(len, prompts))
        if longest + asked.max_tokens > most:
            what = (
                f"This model's context is {most} tokens; a prompt of {longest} and "
                f"{asked.max_tokens} new ones were asked for."
            )
            raise Refusal(400, what, code="context_length_exceeded")
        if not all(prompts):
            raise Refusal(400, "A prompt is empty.", code="invalid_value")
        return prompts

    def _log(self, lines: Iterable[dict[str, Any]]) -> None:
        if self.settings.log is not None:
            with open(self.settings.log, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


def _usage(prompt: list[int], answer: Completion, settings: Settings) -> dict[str, Any]:
    cost = len(prompt) * settings.price_prompt + answer.num_tokens * settings.price_completion
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": answer.num_tokens,
        "cost": cost / 1e6,
    }
