"""Paid calls to a provider, each journalled before and after.

| what happens | may it be paid | what is done |
| --- | --- | --- |
| no connection | no | tried again, `max_retries` times |
| 429, 503 | no | tried again, after the time that the provider names, two minutes at most |
| 400, 401, 403, 404, a redirect | no | an error |
| no whole answer in time, the line breaks, 500, 502, 504 | yes | an error; never tried again |
| an answer that cannot be read, is too large, or is not to all queries | yes | the same |

An error stops the run, or drops the client that asked, as `on_failure` says; a wrong key, model,
address or parameter always stops it. What a call may cost at most is set aside, by the line
`asked`, before it is sent: calls from several threads cannot pass a budget together.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fedjax_post.core.access import UnansweredError
from fedjax_post.provider.address import without_key
from fedjax_post.provider.journal import OUTSIDE, Journal, digest
from fedjax_post.provider.refusals import read_refusal
from fedjax_post.provider.replies import Bill, MalformedError, Reply, read_answer, read_json
from fedjax_post.provider.requests import Query, write_request
from fedjax_post.provider.spent import Key, Spent
from fedjax_post.provider.terms import Terms, settle, worst_cost


class Answered(NamedTuple):
    """What came back over a line."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    content: bytes


class UnreachedError(Exception):
    """There is no connection: nothing was sent."""


class LostError(Exception):
    """What was sent may have arrived, and no whole answer came."""


class Post(Protocol):
    """Sends a body to a path of one host: `Line.post`."""

    def __call__(self, path: str, content: bytes) -> Answered:
        """The answer; raises UnreachedError or LostError."""


class Provider(NamedTuple):
    """Who is asked."""

    url: str
    model: str  # its name there
    key: str  # "" without one
    post: Post


class ProviderError(UnansweredError):
    """A provider did not answer as it should.

    Attributes:
      may_be_paid: whether the call may have been charged.
      sent: whether it may have arrived.
      wait: seconds until it may be sent again; None if it should not be.
    """

    may_be_paid = False
    sent = True
    wait: float | None = None


class BudgetError(ProviderError):
    """The queries or the money of a run are spent."""

    sent = False


class Caller:
    """Asks one model of one provider.

    Args:
      provider: who is asked.
      tokenizer: to tell what a call may cost at most.
      terms: on which it is asked.
      journal: of the run.
      watch: called after each call that was sent, with what the run has spent so far.
    """

    def __init__(
        self,
        provider: Provider,
        tokenizer: Any,
        *,
        terms: Terms,
        journal: Journal,
        watch: Callable[[Spent], None] | None = None,
    ):
        self.terms, self.journal = terms, journal
        self._provider, self._tokenizer, self._watch = provider, tokenizer, watch
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
        request = digest(
            {"model": self._provider.model, "style": self.terms.style, **query._asdict()}
        )
        with self.journal.lock:
            key = self.journal.key(*place, call, request)
            found = self.journal.find(key, request)
        if found and found["state"] == "failed":
            raise self._error(found["error"], droppable=True)
        if found:
            return [Reply(*reply) for reply in found["replies"]]
        if self.terms.guard is not None:
            self.terms.guard(query.texts)
        for attempt in range(self.terms.max_retries + 1):
            try:
                return self._attempt(query, key, request, attempt=attempt)
            except ProviderError as error:
                if error.wait is None:
                    raise
                time.sleep(error.wait)
        raise AssertionError("the loop above returns or raises")

    def _attempt(self, query: Query, key: Key, request: str, *, attempt: int) -> list[Reply]:
        """Sends a query once, between two lines of the journal."""
        began = time.perf_counter()
        number = {"queries": len(query.texts)}
        seconds = lambda: {"seconds": time.perf_counter() - began}
        try:
            self._set_aside(query, key, request)
            replies, bill = self._send(query, key, attempt)
        except ProviderError as error:
            error.drop = error.drop and key[1] != OUTSIDE  # an evaluation drops nobody
            error.wait = None if attempt == self.terms.max_retries else error.wait
            told = {"may_be_paid": error.may_be_paid, "sent": error.sent, "error": str(error)}
            state = {"dropped": error.drop} if error.wait is None else {}
            self.journal.write(
                "failed" if state else "refused", key, request, **number, **told, **state,
                **seconds(),
            )  # fmt: skip
            raise
        bill = settle(bill, replies, query, tokenizer=self._tokenizer, terms=self.terms)
        self.journal.write(
            "answered", key, request, **number, **bill._asdict(), replies=replies, **seconds()
        )
        self._note(bill)
        return replies

    def _set_aside(self, query: Query, key: Key, request: str) -> None:
        """Writes that a call is sent, if the budget covers it at its most."""
        terms, num = self.terms, len(query.texts)
        worst = worst_cost(query, self._tokenizer, terms=terms)
        with self.journal.lock:
            spent = self.journal.spent()
            if terms.max_queries is not None and spent.sent + num > terms.max_queries:
                raise self._error(
                    f"max_queries={terms.max_queries} does not cover the next call: {spent.sent} "
                    f"queries are spent ({spent.cost:.4g} paid), it has {num}; raise it and "
                    "`resume`",
                    kind=BudgetError,
                    droppable=True,
                )
            if terms.max_cost is not None and spent.cost + (worst or 0.0) > terms.max_cost:
                raise self._error(
                    f"max_cost={terms.max_cost:g} does not cover the next call: {spent.cost:.4g} "
                    f"are spent on {spent.sent} queries, it may cost {worst or 0.0:.4g}; raise it "
                    "and `resume`",
                    kind=BudgetError,
                    droppable=True,
                )
            self.journal.write("asked", key, request, queries=num, worst_cost=worst)

    def _send(self, query: Query, key: Key, attempt: int) -> tuple[list[Reply], Bill]:
        terms, provider = self.terms, self._provider
        user = f"client-{key[1]}" if terms.name_clients and key[1] >= 0 else None
        path, body = write_request(query, provider.model, style=terms.style, user=user)
        try:
            answered = provider.post(path, json.dumps(body).encode())
            if answered.status // 100 != 2:
                raise self._refused(answered, attempt)
            answer = read_json(answered.content, key=provider.key)
            return read_answer(answer, query, style=terms.style)
        except UnreachedError as error:
            lost = self._error(
                f"cannot be reached ({error}), tried {attempt + 1} times; start the provider or "
                "correct the address",
                droppable=True,
            )
            lost.sent, lost.wait = False, 0.5 * 2**attempt
            raise lost from None
        except LostError as error:
            raise self._error(
                f"{error}; {len(query.texts)} queries may have been paid. `resume` sends them "
                "again; a slow provider needs a longer `timeout`",
                droppable=True,
                may_be_paid=True,
            ) from None
        except MalformedError as error:
            raise self._error(
                f"sent an answer that cannot be used ({error}); it may have been paid. Is the "
                "address that of an OpenAI-compatible API, ending in /v1?",
                droppable=True,
                may_be_paid=True,
            ) from None

    def _refused(self, answered: Answered, attempt: int) -> ProviderError:
        status, headers = answered.status, answered.headers
        if status // 100 == 3:
            where = without_key(headers.get("location", ""), self._provider.key)
            return self._error(
                f"answered {status}, a redirect to {where[:200]!r}, which is not followed: texts "
                "go to the host that was named. Give that address if it may see them"
            )
        if status == 401:  # what it said may hold a part of the key
            return self._error("refused the key; set OPENAI_API_KEY to yours")
        said, code = read_refusal(answered.content, key=self._provider.key)
        times = f", {attempt + 1} times" if attempt else ""
        remedy, droppable = _REMEDIES.get(code) or _REMEDIES.get(status) or (
            "correct the request's settings" if status < 500 else "`resume` later",
            status >= 500,
        )  # fmt: skip
        paid = status >= 500 and status != 503
        doubt = "; it may have been paid" if paid else ""
        message = f"answered {status}{times} ({said}){doubt}; {remedy}"
        error = self._error(message, droppable=droppable, may_be_paid=paid)
        if status in (429, 503) and code != "insufficient_quota":
            error.wait = _wait(headers, attempt)
        return error

    def _error(
        self,
        message: str,
        *,
        kind: type[ProviderError] = ProviderError,
        droppable: bool = False,
        may_be_paid: bool = False,
    ) -> ProviderError:
        starts = (f"url={self._provider.url}", "max_queries=", "max_cost=")
        error = kind(message if message.startswith(starts) else f"{starts[0]} {message}")
        error.drop = droppable and self.terms.on_failure == "drop"
        error.may_be_paid = may_be_paid
        return error

    def _note(self, bill: Bill) -> None:
        """Tells what a user must know of an answer; it is in the journal already."""
        if self._watch is not None:
            self._watch(self.journal.spent())
        seen = (bill.model, bill.fingerprint)
        if self._seen not in (None, seen):
            warnings.warn(f"the provider's model changed from {self._seen} to {seen}", stacklevel=2)
        self._seen = seen


# By the code or the status of a refusal: what to do, and whether one client's absence helps.
_REMEDIES: dict[str | int | None, tuple[str, bool]] = {
    "content_policy_violation": ("leave these rows out, or ask another provider", True),
    "content_filter": ("leave these rows out, or ask another provider", True),
    "context_length_exceeded": ("lower `max_length`, or shorten the prompt", True),
    "insufficient_quota": ("top up the account and `resume`", True),
    "logprobs_limit": ("lower `Terms.top_logprobs`", False),
    403: ("this client is not served; ask another provider, or drop it", True),
    404: ("correct the model's name there, or `url`", False),
    413: ("ask in smaller batches, or shorten the prompt", True),
    429: ("wait and `resume`, or raise `Terms.max_retries`", True),
    503: ("wait and `resume`, or ask another provider", True),
}
_PATIENCE = 120.0  # seconds that a provider may ask to wait


def _wait(headers: Mapping[str, str], attempt: int) -> float | None:
    """Seconds until a refused call may be sent again; None if the provider names too many."""
    seconds = 0.5 * 2**attempt
    for name, unit in (("retry-after", 1.0), ("retry-after-ms", 1e-3)):  # the finer one counts
        try:
            named = unit * float(headers.get(name, ""))
        except ValueError:  # none, or a date
            continue
        seconds = named if named >= 0 else seconds
    return seconds if seconds <= _PATIENCE else None


def rows_per_call(terms: Terms, texts: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts as they are put into calls."""
    if terms.style == "chat":
        return [(text,) for text in texts]
    return [tuple(texts)] if texts else []
