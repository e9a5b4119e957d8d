"""A provider: a model behind the OpenAI formats, with its own terms.

To measure what a federation gives up with a hosted model, a host is needed that charges, limits,
refuses, changes its model and shuts down; each of these is a setting here. The log records
everything that the provider saw, whether it answered or not; see `log`.

Answers are greedy, and requests for other sampling are refused as unsupported. Requests are read,
checked and tokenised in parallel. The model computes one batch at a time, so that other requests
are served between the batches of a large one, and between the steps of a fine-tuning job.
"""

import contextlib
import logging
import math
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_post.model.views import LanguageModel
from fedjax_post.provider import formats, job_requests, soft_prompts, streaming, uploads
from fedjax_post.provider.codec import encode_prompt
from fedjax_post.provider.formats import Asked
from fedjax_post.provider.jobs import Jobs
from fedjax_post.provider.log import Log
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.served import Completion, Served, adapted, complete
from fedjax_post.provider.training import Recipe
from fedjax_post.provider.training_rows import learned, read_lines, texts_of


class Settings(NamedTuple):
    """The terms of a provider."""

    price_prompt: float = 0.0  # for a million tokens
    price_completion: float = 0.0  # for a million tokens
    price_training: float = 0.0  # for a million tokens, in each epoch of a fine-tuning job
    rate_limit: tuple[int, float] | None = None  # maximum requests in a number of seconds
    latency: float = 0.0  # seconds added to each answer
    log: str | Path | None = None  # JSON lines; None writes no log
    refused_clients: tuple[str, ...] = ()  # values of `user`, and names of files without .jsonl
    refused_pattern: str | None = None  # regular expression; matching prompts, rows are refused
    change_after: int | None = None  # number of answers after which another model answers
    shutdown_after: int | None = None  # number of answers after which all requests are refused
    api_key: str | None = None  # None: open to all
    max_logprobs: int = 20  # at each position
    max_bytes: int = 4 << 20  # of a request's body
    recipe: Recipe | None = Recipe()  # of fine-tuning; None: it is not offered


class Provider:
    """A provider: its model, its terms, and the number of its answers so far.

    Args:
      served: the model.
      settings: its terms.
      successor: the model that answers after `settings.change_after` requests. Requests continue
        to name the first model; answers name the one that gave them.
      clock_fn: returns the seconds by which the rate of requests is limited.

    Raises:
      ValueError: if only one of `change_after` and `successor` is given, the pattern is invalid,
        or the key is empty.
    """

    def __init__(
        self,
        served: Served,
        settings: Settings = Settings(),  # noqa: B008 - immutable
        *,
        successor: Served | None = None,
        clock_fn: Callable[[], float] = time.monotonic,
    ):
        if (successor is None) != (settings.change_after is None):
            raise ValueError("`change_after` and `successor` go together; give both or neither")
        if settings.api_key is not None and not settings.api_key.strip():
            raise ValueError("api_key is empty; set one, or None to be open to all")
        try:
            self._pattern = settings.refused_pattern and re.compile(settings.refused_pattern)
        except re.error as error:
            raise ValueError(f"refused_pattern={settings.refused_pattern}: {error}") from None
        self.served, self.settings, self._successor = served, settings, successor
        self._clock_fn = clock_fn
        self.log = Log(settings.log)
        self.files, self._jobs = uploads.Files(), None
        if settings.recipe is not None:
            price = settings.price_training
            self._jobs = Jobs(
                settings.recipe, price=price, note=lambda **facts: self.log.write_job(**facts)
            )
        self.num_answered = 0
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()  # guards `num_answered` and `_recent`

    def check_key(self, authorization: str) -> None:
        """Checks the key of a request.

        Args:
          authorization: the header of that name; "" without one.

        Raises:
          Refusal: 401, for a missing or wrong key.
        """
        key = self.settings.api_key
        given = authorization.encode("utf-8", "replace")
        if key is not None and not secrets.compare_digest(given, f"Bearer {key}".encode()):
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    @property
    def jobs(self) -> Jobs:
        """Fine-tuning jobs; raises Refusal, 404, if fine-tuning is not offered."""
        if self._jobs is None:
            raise Refusal(404, "This provider does not fine-tune models.", code="not_found")
        return self._jobs

    def models(self) -> list[str]:
        """Returns the names of all models, those that were fine-tuned last."""
        return [self.served.name, *(self._jobs.models if self._jobs else ())]

    def replace_weights(self, change_fn: Callable[[LanguageModel], LanguageModel]) -> None:
        """Serves other weights under the same names; fine-tuned models keep their adapters.

        Args:
          change_fn: returns the other model from one that is served.
        """
        other = lambda served: adapted(served, served.name, change_fn(served.model), served.params)
        self.served = other(self.served)
        if self._jobs is not None:
            tuned = self._jobs.models
            tuned.update({name: other(served) for name, served in tuned.items()})

    def close(self) -> None:
        """Cancels all fine-tuning jobs, and returns once none is trained."""
        if self._jobs is not None:
            self._jobs.close()

    def answer(
        self, content: bytes, *, chat: bool, request: str
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Returns the answer to a request, after logging it; or its pieces, if it is streamed.

        Args:
          content: raw body of the request.
          chat: whether it was sent as a chat.
          request: its id.

        Raises:
          Refusal: if it is not answered; this is logged too.
        """
        with self.logged(request) as facts:
            return self._answer(content, chat=chat, request=request, facts=facts)

    def upload(self, content: bytes, *, content_type: str, request: str) -> dict[str, Any]:
        """Returns the card of a new file of rows, after logging it.

        Args:
          content: raw body of the request, a form.
          content_type: the header of that name.
          request: its id.

        Raises:
          Refusal: if it is not taken; this is logged too.
        """
        with self.logged(request) as facts:
            self._admit()
            self.jobs.check_room()
            name, content = uploads.read_form(content, content_type)
            facts["user"] = name.removesuffix(".jsonl")[:64]
            self._check_user(facts["user"], param="file")
            rows = read_lines(content)
            self._check_texts([texts_of(row) for row in rows], param="file")
            file = self.files.add(name, rows, size=len(content))
            self.log.write_outcome(request, status=200, **facts, file=file.id, rows=len(rows))
            return file.card

    def delete(self, id: str, *, request: str) -> dict[str, Any]:
        """Deletes a file, after logging it; raises Refusal."""
        with self.logged(request) as facts:
            found = self.files.delete(id)
            self.log.write_outcome(request, status=200, **facts, file=id)
            return found

    def tune(self, content: bytes, *, request: str) -> dict[str, Any]:
        """Returns the card of a new fine-tuning job, after logging it.

        Args:
          content: raw body of the request.
          request: its id.

        Raises:
          Refusal: if it is not taken; this is logged too.
        """
        with self.logged(request) as facts:
            served = self._admit()
            ordered = job_requests.read(formats.read_body(content), self.jobs.recipe)
            if ordered.model != self.served.name:
                raise self.no_model(ordered.model)
            if served.params:
                what = f"The model {self.served.name!r} has an adapter and is not fine-tuned."
                raise Refusal(400, what, code="model_not_available", param="model")
            files = [self.files.get(id, param="training_file") for id in ordered.files]
            tokenizer, context = served.tokenizer, served.context
            rows = [
                row
                for file in files
                for row in learned(file.rows, tokenizer, name=file.id, context=context)
            ]
            job = self.jobs.create(served, ordered, rows)
            self.log.write_outcome(request, status=200, **facts, job=job["id"])
            return job

    def cancel(self, id: str, *, request: str) -> dict[str, Any]:
        """Returns the card of a job that is cancelled, after logging it; raises Refusal."""
        with self.logged(request) as facts:
            found = self.jobs.cancel(id)
            self.log.write_outcome(request, status=200, **facts, job=id)
            return found

    @contextlib.contextmanager
    def logged(self, request: str) -> Iterator[dict[str, Any]]:
        """Returns a context with facts on a request; a failure within it is logged with them."""
        facts: dict[str, Any] = {}
        try:
            yield facts
        except Refusal as refusal:
            self.log.write_outcome(request, status=refusal.status, error=str(refusal), **facts)
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("request %s failed", request)
            self.log.write_outcome(request, status=500, error=repr(error), **facts)
            what = f"The server failed; its log has details of request {request}."
            raise Refusal(500, what, code="internal_error") from None

    def _answer(
        self, content: bytes, *, chat: bool, request: str, facts: dict[str, Any]
    ) -> dict[str, Any] | list[dict[str, Any]]:
        served = self._admit()
        body = formats.read_body(content)
        user = body.get("user")
        facts["user"] = user[:64] if isinstance(user, str) else ""
        render_fn = formats.renderer(served.tokenizer) if chat else None
        most = self.settings.max_logprobs
        asked = formats.read_request(body, most=most, render_fn=render_fn)
        served = _with_soft_prompt(self._find(body.get("model"), served), asked.soft_prompt)
        prompts = self._tokens_of(asked, served)
        answers = complete(
            served, prompts, max_tokens=asked.max_tokens, stop=asked.stop, num_top=asked.num_top
        )
        with self._lock:
            self.num_answered += 1
        usage = _usage(prompts, answers, self.settings)
        texts = [answer.text for answer in answers]
        self.log.write_outcome(
            request, status=200, **facts, model=served.name, answers=texts, **usage
        )
        answer = formats.response(served, asked, answers, usage=usage, request=request)
        if not asked.stream:
            return answer
        return list(streaming.chunks(answer, with_usage=asked.with_usage))

    def _admit(self) -> Served:
        """Returns the model that answers the next request; raises Refusal if none is accepted."""
        settings = self.settings
        with self._lock:
            shutdown, change = settings.shutdown_after, settings.change_after
            if shutdown is not None and self.num_answered >= shutdown:
                what = "This service has been shut down."
                raise Refusal(503, what, code="service_unavailable")
            if settings.rate_limit is not None:
                self._limit(*settings.rate_limit)
            changed = change is not None and self.num_answered >= change
            return self._successor if changed and self._successor else self.served

    def _limit(self, most: int, seconds: float) -> None:
        now = self._clock_fn()
        while self._recent and now - self._recent[0] >= seconds:
            self._recent.popleft()
        if len(self._recent) >= most:
            until = self._recent[0] + seconds - now if self._recent else seconds
            wait = {
                "retry-after": str(math.ceil(until)),
                "retry-after-ms": str(math.ceil(1000 * until)),
            }
            what = f"Rate limit reached: {most} requests in {seconds:g} seconds."
            raise Refusal(429, what, code="rate_limit_exceeded", headers=wait)
        self._recent.append(now)

    def _find(self, name: Any, served: Served) -> Served:
        """Returns the model of a name, `served` for the base; raises Refusal, 404."""
        if name == self.served.name:
            return served
        tuned = self._jobs.models if self._jobs else {}
        if not isinstance(name, str) or name not in tuned:
            raise self.no_model(name)
        return tuned[name]

    def _check_user(self, user: str, *, param: str) -> None:
        if user in self.settings.refused_clients:
            what = f"The user {user!r} is not served here."
            raise Refusal(403, what, code="user_refused", param=param)

    def _check_texts(self, texts: list[str], *, param: str) -> None:
        if self._pattern and any(self._pattern.search(text) for text in texts):
            what = "A prompt was refused by the content policy of this provider."
            raise Refusal(400, what, code="content_policy_violation", param=param)

    def _tokens_of(self, asked: Asked, served: Served) -> list[list[int]]:
        """Returns the tokens of the prompts; raises Refusal if they may not be answered."""
        self._check_user(asked.user, param="user")
        param = "messages" if asked.chat else "prompt"
        self._check_texts(asked.texts, param=param)
        most = served.context - asked.max_tokens
        longest = max(map(len, asked.texts))
        if longest > served.longest * most:  # too long for any tokenisation: do not tokenise it
            what = f"a prompt of {longest} characters"
            raise _too_long(what, asked.max_tokens, served.context, param)
        prompts = [encode_prompt(served.tokenizer, text) for text in asked.texts]
        if not all(prompts):
            raise Refusal(400, "A prompt is empty.", code="invalid_value", param=param)
        longest = max(map(len, prompts))
        if longest > most:
            what = f"a prompt of {longest}"
            raise _too_long(what, asked.max_tokens, served.context, param)
        return prompts

    def no_model(self, name: Any) -> Refusal:
        """Returns the refusal of a request for another model."""
        called = repr(name)[:80]
        what = f"The model {called} does not exist; this provider serves {self.served.name!r}."
        return Refusal(404, what, code="model_not_found", param="model")


def _with_soft_prompt(served: Served, text: str | None) -> Served:
    """Returns the model with the soft prompt of a request, if it has one."""
    if text is None:
        return served
    param = soft_prompts.FIELD
    if served.params.get("prompt"):
        what = f"`{param}` cannot be combined with the prompt of {served.name!r}; leave it out."
        raise Refusal(400, what, code="unsupported_value", param=param)
    try:
        embeddings = soft_prompts.decode(text, width=served.model.config.hidden_size)
    except ValueError as error:
        raise Refusal(400, f"`{param}` {error}.", code="invalid_value", param=param) from None
    if len(embeddings) >= served.context:
        what = f"`{param}` has {len(embeddings)} places; this model's context is {served.context}."
        raise Refusal(400, what, code="context_length_exceeded", param=param)
    prompt = {"prompt": {"embeddings": jnp.asarray(embeddings)}}
    return served._replace(params=served.params | prompt)


def _too_long(what: str, max_tokens: int, context: int, param: str) -> Refusal:
    message = (
        f"This model's context is {context} tokens; {what} and {max_tokens} new ones were "
        "requested."
    )
    return Refusal(400, message, code="context_length_exceeded", param=param)


def _usage(
    prompts: list[list[int]], answers: list[Completion], settings: Settings
) -> dict[str, Any]:
    read, written = sum(map(len, prompts)), sum(answer.num_tokens for answer in answers)
    cost = (read * settings.price_prompt + written * settings.price_completion) / 1e6
    return {"prompt_tokens": read, "completion_tokens": written, "cost": cost}
