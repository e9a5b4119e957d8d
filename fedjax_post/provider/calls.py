"""Paid calls to a provider, each journalled before and after, through the official client.

| what happens | may it be paid | what is done |
| --- | --- | --- |
| no connection | no | tried again, `max_retries` times |
| 429, 503 | no | tried again, after the time that the provider names, two minutes at most |
| 400, 401, 403, 404 | no | an error |
| no answer in time, the line breaks, 500, 502, 504 | yes | an error; never tried again by itself |
| an answer that cannot be read, or is not to all queries | yes | the same |

Hence the client library's own retries are off: they also repeat requests whose answer was lost.
An error stops the run, or drops the client that asked, as `on_failure` says; a wrong key, model
or parameter always stops it.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_post.core.access import UnansweredError
from fedjax_post.provider.codec import encode_prompt
from fedjax_post.provider.journal import OUTSIDE, Journal, Key, Spent, digest
from fedjax_post.provider.replies import Bill, MalformedError, Reply, read_answer

PATIENCE = 120.0  # seconds that a provider may ask to wait


class Terms(NamedTuple):
    """On what terms a provider is asked."""

    style: str = "completions"  # or "chat": one prompt a request, as a user's message
    max_queries: int | None = None  # of the whole run, those before a resumption included
    max_cost: float | None = None  # in the currency of the prices
    price_prompt: float | None = None  # for a million tokens; None: as the provider reports
    price_completion: float | None = None
    max_retries: int = 2  # of calls that cannot have been paid
    timeout: float = 60.0  # seconds
    top_logprobs: int = 20  # asked for; vLLM gives 20, OpenAI 5 for completions and 20 for chats
    on_failure: str = "stop"  # or "drop": go on without the client that asked
    name_clients: bool = True  # send `user=client-<id>`, as clients with accounts would be known
    guard: Callable[[Sequence[str]], None] | None = None  # sees texts before they leave; may raise


class Query(NamedTuple):
    """What is asked in one call."""

    texts: tuple[str, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    num_top: int | None = None  # log-probabilities of the likeliest tokens


class ProviderError(UnansweredError):
    """A provider did not answer as it should.

    Attributes:
      may_be_paid: whether the call may have been charged.
    """

    may_be_paid = False


class BudgetError(ProviderError):
    """The queries or the money of a run are spent."""


class Caller:
    """Asks one model of one provider.

    Args:
      client: of the `openai` library, its own retries off.
      model: name of the model there.
      tokenizer: to tell what a call may cost at most.
      terms: on which it is asked.
      journal: of the run.
      watch: called after each call that was sent, with what the run has spent so far.
    """

    def __init__(
        self,
        client: Any,
        model: str,
        tokenizer: Any,
        *,
        terms: Terms,
        journal: Journal,
        watch: Callable[[Spent], None] | None = None,
    ):
        self.terms, self.journal = terms, journal
        self._client, self._model, self._tokenizer = client, model, tokenizer
        self._watch = watch
        self._seen: tuple[str, str | None] | None = None  # model and fingerprint of answers

    def ask(self, query: Query, place: tuple[int, int], call: int) -> list[Reply]:
        """The replies to a query's texts, from the journal if they are there.

        Args:
          query: what is asked.
          place: round and client.
          call: number of the call in that visit.

        Raises:
          ProviderError: see the table in the module's head.
          BudgetError: before anything is sent that the budget may not cover.
          JournalError: if the journal holds another request under this key.
        """
        request = digest({"model": self._model, "style": self.terms.style, **query._asdict()})
        key = self.journal.key(*place, call, request)
        found = self.journal.find(key, request)
        if found and found["state"] == "failed":
            raise self._error(ProviderError, found["error"], droppable=True)
        if found:
            return [Reply(*reply) for reply in found["replies"]]
        if self.terms.guard is not None:
            self.terms.guard(query.texts)
        began = time.perf_counter()
        number = {"queries": len(query.texts)}
        try:
            worst = self._worst_cost(query)
            self._check_budget(len(query.texts), worst)
            self.journal.write("asked", key, request, **number, worst_cost=worst)
            replies, bill = self._send(query, key)
        except ProviderError as error:
            error.drop = error.drop and place[1] != OUTSIDE  # an evaluation drops nobody
            told = {"error": str(error), "may_be_paid": error.may_be_paid, "dropped": error.drop}
            seconds = time.perf_counter() - began
            self.journal.write("failed", key, request, **number, **told, seconds=seconds)
            raise
        seconds = time.perf_counter() - began
        bill = bill._replace(cost=self._cost(bill))
        self.journal.write(
            "answered", key, request, **number, **bill._asdict(), replies=replies, seconds=seconds
        )
        self._note(bill)
        return replies

    def _send(self, query: Query, key: Key) -> tuple[list[Reply], Bill]:
        import openai

        for attempt in range(self.terms.max_retries + 1):
            try:
                return read_answer(self._create(query, key), query)
            except openai.APIStatusError as error:
                wait = _wait(error, attempt)
                if wait is None or attempt == self.terms.max_retries:
                    raise self._refused(error, attempt) from None
            except openai.APIConnectionError as error:
                # By name, since the client stands on either of two transport libraries.
                if type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout"):
                    raise self._lost(error, query) from None
                if attempt == self.terms.max_retries:
                    raise self._error(
                        ProviderError,
                        f"cannot be reached ({error.__cause__}), tried {attempt + 1} times; start "
                        "the provider or correct the address",
                        droppable=True,
                    ) from None
                wait = 0.5 * 2**attempt
            except (openai.OpenAIError, MalformedError, ValueError) as error:
                raise self._error(
                    ProviderError,
                    f"sent an answer that cannot be used ({error}); it may have been paid. Is the "
                    "address that of an OpenAI-compatible API, ending in /v1?",
                    droppable=True,
                    may_be_paid=True,
                ) from None
            time.sleep(wait)
        raise AssertionError("the loop above returns or raises")

    def _create(self, query: Query, key: Key) -> Any:
        asked: dict[str, Any] = {"model": self._model, "temperature": 0}
        if query.stop:
            asked["stop"] = list(query.stop)
        if self.terms.name_clients and key[1] >= 0:
            asked["user"] = f"client-{key[1]}"
        if self.terms.style == "completions":
            asked |= {"prompt": list(query.texts), "max_tokens": query.max_tokens}
            if query.num_top is not None:
                asked["logprobs"] = query.num_top
            return self._client.completions.create(**asked)
        (text,) = query.texts
        asked |= {"messages": [{"role": "user", "content": text}]}
        asked |= {"max_completion_tokens": query.max_tokens}
        if query.num_top is not None:
            asked |= {"logprobs": True, "top_logprobs": query.num_top}
        return self._client.chat.completions.create(**asked)

    def _refused(self, error: Any, attempt: int) -> ProviderError:
        status = error.status_code
        body = error.body if isinstance(error.body, dict) else {}
        said = self._without_key(str(body.get("message", error.message)))
        if status == 401:  # what it said may hold the key
            return self._error(ProviderError, "refused the key; set OPENAI_API_KEY to yours")
        times = f", {attempt + 1} times" if attempt else ""
        remedy, droppable = _REMEDIES.get(error.code) or _REMEDIES.get(status) or (
            "correct the request's settings" if status < 500 else "try --resume later",
            status >= 500,
        )  # fmt: skip
        paid = status >= 500 and status != 503
        doubt = "; it may have been paid" if paid else ""
        message = f"answered {status}{times} ({said}){doubt}; {remedy}"
        return self._error(ProviderError, message, droppable=droppable, may_be_paid=paid)

    def _lost(self, error: Any, query: Query) -> ProviderError:
        import openai

        late = isinstance(error, openai.APITimeoutError)
        what = f"gave no answer within {self.terms.timeout:g} s" if late else "broke the line"
        return self._error(
            ProviderError,
            f"{what} ({error.__cause__!r}); {len(query.texts)} queries may have been paid. "
            "--resume sends them again; allow more time (`Terms.timeout`) if the provider is slow",
            droppable=True,
            may_be_paid=True,
        )

    def _error(self, kind, message: str, *, droppable=False, may_be_paid=False) -> Any:
        prefix = f"--provider_url={self._client.base_url}"
        error = kind(message if message.startswith("--") else f"{prefix} {message}")
        error.drop = droppable and self.terms.on_failure == "drop"
        error.may_be_paid = may_be_paid
        return error

    def _without_key(self, text: str) -> str:
        key = self._client.api_key
        return text.replace(key, "(key)") if key else text

    def _check_budget(self, num: int, worst: float | None) -> None:
        terms, spent = self.terms, self.journal.spent()
        if terms.max_queries is not None and spent.queries + num > terms.max_queries:
            raise self._error(
                BudgetError,
                f"--max_queries={terms.max_queries} does not cover the next call: "
                f"{spent.queries} queries are spent ({spent.cost:.4g} paid), it has {num}; "
                "raise it and --resume",
                droppable=True,
            )
        over = terms.max_cost is not None and spent.cost + (worst or 0.0) > terms.max_cost
        if over or (worst is None and spent.cost == terms.max_cost):
            raise self._error(
                BudgetError,
                f"--max_cost={terms.max_cost:g} does not cover the next call: {spent.cost:.4g} "
                f"are spent on {spent.queries} queries, it may cost {worst or 0.0:.4g}; "
                "raise it and --resume",
                droppable=True,
            )

    def _worst_cost(self, query: Query) -> float | None:
        terms = self.terms
        if terms.price_prompt is None or terms.price_completion is None:
            return None
        prompts = sum(len(encode_prompt(self._tokenizer, text)) for text in query.texts)
        answers = len(query.texts) * query.max_tokens
        return (prompts * terms.price_prompt + answers * terms.price_completion) / 1e6

    def _cost(self, bill: Bill) -> float | None:
        terms = self.terms
        if bill.cost is not None or terms.price_prompt is None or terms.price_completion is None:
            return bill.cost
        prompts, answers = bill.prompt_tokens, bill.completion_tokens
        return (prompts * terms.price_prompt + answers * terms.price_completion) / 1e6

    def _note(self, bill: Bill) -> None:
        """Tells what a user must know of an answer; it is in the journal already."""
        if self._watch is not None:
            self._watch(self.journal.spent())
        if self.terms.max_cost is not None and bill.cost is None:
            raise self._error(
                ProviderError,
                "does not report what a call costs, so --max_cost cannot be kept; give the prices "
                "(`Terms.price_prompt`, `Terms.price_completion`) and --resume",
            )
        seen = (bill.model, bill.fingerprint)
        if self._seen not in (None, seen):
            warnings.warn(f"the provider's model changed from {self._seen} to {seen}", stacklevel=2)
        self._seen = seen


# By the code or the status of a refusal: what to do, and whether one client's absence helps.
_REMEDIES: dict[str | int | None, tuple[str, bool]] = {
    "content_policy_violation": ("leave these rows out, or ask another provider", True),
    "content_filter": ("leave these rows out, or ask another provider", True),
    "context_length_exceeded": ("lower --max_length, or shorten the prompt", True),
    "insufficient_quota": ("top up the account and --resume", True),
    "logprobs_limit": ("lower `Terms.top_logprobs`", False),
    403: ("this client is not served; ask another provider, or drop it", True),
    404: ("correct --provider_model or --provider_url", False),
    429: ("wait and --resume, or raise `Terms.max_retries`", True),
    503: ("wait and --resume, or ask another provider", True),
}


def _wait(error: Any, attempt: int) -> float | None:
    """Seconds until a refused call may be sent again; None if it should not be."""
    if error.status_code not in (429, 503) or error.code == "insufficient_quota":
        return None
    headers, seconds = error.response.headers, 0.5 * 2**attempt
    for name, unit in (("retry-after", 1.0), ("retry-after-ms", 1e-3)):  # the finer one counts
        with contextlib.suppress(ValueError, KeyError):
            named = unit * float(headers[name])
            seconds = named if named >= 0 else seconds
    return seconds if seconds <= PATIENCE else None


def rows_per_call(terms: Terms, texts: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts as they are put into calls."""
    if terms.style == "chat":
        return [(text,) for text in texts]
    return [tuple(texts)] if texts else []
