"""Paid calls to a provider, each recorded in the journal before and after.

| event | may be paid | action |
| --- | --- | --- |
| no connection | no | repeated up to `max_retries` times |
| 429, 503 | no | repeated after the time that the provider names, at most two minutes |
| 400, 401, 403, 404, a redirect | no | an error |
| no complete answer in time, a broken connection, 500, 502, 504 | yes | an error; never repeated |
| an answer that is unreadable, too large, or not to all queries | yes | an error; never repeated |

An error stops the run or drops the client, as `on_failure` specifies. A wrong key, model, address
or parameter always stops the run. The maximum cost of a call is reserved by a line `asked` before
the call is sent, so that calls from several threads cannot exceed a budget together.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fedjax_post.core.access import UnansweredError
from fedjax_post.disclosure.meter import Carried, Meter
from fedjax_post.provider import soft_prompts
from fedjax_post.provider.address import without_key
from fedjax_post.provider.journal import Journal, digest
from fedjax_post.provider.refusals import read_refusal
from fedjax_post.provider.replies import Bill, MalformedError, Reply, read_answer, read_json
from fedjax_post.provider.requests import Query, write_request
from fedjax_post.provider.spent import Key, Spent
from fedjax_post.provider.terms import Terms, settle, worst_cost

JSON = "application/json"


class Answered(NamedTuple):
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    content: bytes


class UnreachedError(Exception):
    """No connection was made: nothing was sent."""


class LostError(Exception):
    """The request may have arrived, but no complete answer was received."""


class Post(Protocol):
    """Sends a body to a path of one host: `Line.post`."""

    def __call__(self, path: str, content: bytes | None, content_type: str = JSON, /) -> Answered:
        """Returns the response to a body, None to read only; raises UnreachedError or LostError."""


class Provider(NamedTuple):
    """The provider and model that are queried."""

    url: str
    model: str  # its name at the provider
    key: str  # "" without one
    post: Post


class ProviderError(UnansweredError):
    """A provider did not answer properly.

    Attributes:
      may_be_paid: whether the call may have been charged.
      sent: whether it may have arrived.
      wait: seconds until it may be repeated; None if it should not be.
    """

    may_be_paid = False
    sent = True
    wait: float | None = None


class BudgetError(ProviderError):
    """The budget of queries or money does not cover the next call."""

    sent = False


class Errand(NamedTuple):
    """A paid call of any kind."""

    request: str  # digest of its content
    queries: int  # texts in it
    worst_cost: float | None  # None without prices
    carries: Carried  # recorded each time before it is sent
    write: Callable[[str | None], tuple[str, bytes, str]]  # name of a user -> arguments of `Post`
    read: Callable[[Any], tuple[list[Reply], Bill]]  # JSON of the answer -> a reply to each text
    missing: str = "correct the model's name there, or `url`"  # remedy if there is no such address
    facts: Mapping[str, Any] = {}  # fields of its line in the journal


class Caller:
    """Queries one model of one provider.

    Args:
      provider: that is queried.
      tokenizer: used to compute the maximum cost of a call.
      terms: budget, prices and failure handling.
      journal: of the run.
      meter: counts what calls carry, and may refuse them.
      watch: called after each answered call, with what the run has spent so far.
    """

    def __init__(
        self,
        provider: Provider,
        tokenizer: Any,
        *,
        terms: Terms,
        journal: Journal,
        meter: Meter,
        watch: Callable[[Spent], None] | None = None,
    ):
        self.terms, self.journal, self.meter = terms, journal, meter
        self.provider, self.tokenizer, self._watch = provider, tokenizer, watch
        self._seen: tuple[str, str | None] | None = None  # model and fingerprint of the last answer

    def of(self, model: str) -> "Caller":
        """Returns a caller of another model of the provider, with the same journal and terms."""
        return Caller(
            self.provider._replace(model=model),
            self.tokenizer,
            terms=self.terms,
            journal=self.journal,
            meter=self.meter,
            watch=self._watch,
        )

    def ask(self, query: Query, place: tuple[int, int], call: int, carries: Carried) -> list[Reply]:
        """Returns the replies to a query's texts, from the journal if it has them.

        Args:
          query: texts and settings.
          place: round and client.
          call: number of the call in that visit.
          carries: by the meter; recorded each time before the query is sent.

        Raises:
          DisclosureError: if the meter refuses the call; nothing is sent then.
          ProviderError: see the table in the module's docstring.
          BudgetError: if the budget may not cover the call; nothing is sent then.
          JournalError: if the journal contains another request under the same key.
        """
        terms, provider = self.terms, self.provider

        def write(user: str | None) -> tuple[str, bytes, str]:
            path, body = write_request(query, provider.model, style=terms.style, user=user)
            return path, json.dumps(body).encode(), JSON

        def read(answer: Any) -> tuple[list[Reply], Bill]:
            if query.soft_prompt is not None and not soft_prompts.is_confirmed(answer):
                raise MalformedError(f"it did not read `{soft_prompts.FIELD}`")
            replies, bill = read_answer(answer, query, style=terms.style)
            return replies, settle(bill, replies, query, tokenizer=self.tokenizer, terms=terms)

        content = {"model": provider.model, "style": terms.style, **query._asdict()}
        worst = worst_cost(query, self.tokenizer, terms=terms)
        errand = Errand(digest(content), len(query.texts), worst, carries, write, read)
        return self.do(errand, place, call)

    def do(self, errand: Errand, place: tuple[int, int], call: int) -> list[Reply]:
        """Returns the replies to a call, from the journal if it has them.

        Args:
          errand: the call.
          place: round and client.
          call: number of the call in that visit.

        Raises:
          DisclosureError, ProviderError, BudgetError, JournalError: as `ask`.
        """
        with self.journal.lock:
            key = self.journal.key(*place, call, errand.request)
            found = self.journal.find(key, errand.request)
        if found and found["state"] == "failed":
            raise self.error(found["error"], droppable=True)
        if found:
            return [Reply(*reply) for reply in found["replies"]]
        self.meter.check(errand.carries)
        for attempt in range(self.terms.max_retries + 1):
            try:
                return self._attempt(errand, key, attempt=attempt)
            except ProviderError as error:
                if error.wait is None:
                    raise
                time.sleep(error.wait)
        raise AssertionError("the loop above returns or raises")

    def look(self, path: str) -> Any:
        """Returns the JSON at an address of the provider, which costs nothing and carries no text.

        Raises:
          ProviderError: if it is not answered, after some attempts.
        """
        for attempt in range(self.terms.max_retries + 1):
            try:
                return self._exchange(lambda: (path, None, JSON), attempt, queries=0)
            except ProviderError as error:
                if error.wait is None or attempt == self.terms.max_retries:
                    raise
                time.sleep(error.wait)
        raise AssertionError("the loop above returns or raises")

    def _attempt(self, errand: Errand, key: Key, *, attempt: int) -> list[Reply]:
        """Makes a call once, and writes a line to the journal before and after."""
        began = time.perf_counter()
        number = {"queries": errand.queries}
        seconds = lambda: {"seconds": time.perf_counter() - began}
        user = f"client-{key[1]}" if self.terms.name_clients and key[1] >= 0 else None
        try:
            self._reserve(errand, key)
            answer = self._exchange(
                lambda: errand.write(user), attempt, queries=errand.queries, missing=errand.missing
            )
            replies, bill = self._read(errand.read, answer)
        except ProviderError as error:
            error.drop = error.drop and key[1] >= 0  # an evaluation has no client to drop
            error.wait = None if attempt == self.terms.max_retries else error.wait
            facts = {"may_be_paid": error.may_be_paid, "sent": error.sent, "error": str(error)}
            state = {"dropped": error.drop} if error.wait is None else {}
            self.journal.write(
                "failed" if state else "refused", key, errand.request, **number, **facts, **state,
                **seconds(),
            )  # fmt: skip
            raise
        paid = number | bill._asdict() | dict(errand.facts)
        self.journal.write("answered", key, errand.request, **paid, replies=replies, **seconds())
        self._note(bill)
        return replies

    def _reserve(self, errand: Errand, key: Key) -> None:
        """Records that a call is sent and what it carries, if the budget covers its cost."""
        terms, num, worst = self.terms, errand.queries, errand.worst_cost
        with self.journal.lock:
            spent = self.journal.spent()
            if terms.max_queries is not None and spent.sent + num > terms.max_queries:
                raise self.error(
                    f"max_queries={terms.max_queries} does not cover the next call: {spent.sent} "
                    f"queries are spent ({spent.cost:.4g} paid), the call has {num}; raise it to "
                    "continue",
                    kind=BudgetError,
                    droppable=True,
                )
            if terms.max_cost is not None and spent.cost + (worst or 0.0) > terms.max_cost:
                raise self.error(
                    f"max_cost={terms.max_cost:g} does not cover the next call: {spent.cost:.4g} "
                    f"are spent on {spent.sent} queries, the call may cost {worst or 0.0:.4g}; "
                    "raise it to continue",
                    kind=BudgetError,
                    droppable=True,
                )
            facts = {"worst_cost": worst, "carries": errand.carries._asdict()}
            self.journal.write("asked", key, errand.request, queries=num, **facts)

    def _exchange(
        self, write: Callable[[], tuple[str, bytes | None, str]], attempt: int, *, queries: int,
        missing: str = "",
    ) -> Any:  # fmt: skip
        """Returns the JSON of an answer to one request; raises ProviderError."""
        provider = self.provider
        try:
            path, content, kind = write()
            given = () if kind == JSON else (kind,)
            answered = provider.post(path, content, *given)
        except UnreachedError as error:
            lost = self.error(
                f"cannot be reached ({error}), tried {attempt + 1} times; start the provider or "
                "correct the address",
                droppable=True,
            )
            lost.sent, lost.wait = False, 0.5 * 2**attempt
            raise lost from None
        except LostError as error:
            raise self.error(
                f"{error}; {queries} queries may have been paid. `resume` sends them "
                "again; a slow provider needs a longer `timeout`",
                droppable=True,
                may_be_paid=True,
            ) from None
        if answered.status // 100 != 2:
            raise self._refusal_error(answered, attempt, missing)
        return self._read(lambda content: read_json(content, key=provider.key), answered.content)

    def _read(self, read: Callable[[Any], Any], answer: Any) -> Any:
        """Returns what an answer says; raises ProviderError if it cannot be used."""
        try:
            return read(answer)
        except MalformedError as error:
            raise self.error(
                f"sent an answer that cannot be used ({error}); it may have been paid. Is the "
                "address that of an OpenAI-compatible API, ending in /v1?",
                droppable=True,
                may_be_paid=True,
            ) from None

    def _refusal_error(self, answered: Answered, attempt: int, missing: str) -> ProviderError:
        status, headers = answered.status, answered.headers
        if status // 100 == 3:
            where = without_key(headers.get("location", ""), self.provider.key)
            return self.error(
                f"answered {status}, a redirect to {where[:200]!r}, which is not followed: texts "
                "are sent only to the configured host. Give that address if it may see them"
            )
        if status == 401:  # its message may contain a part of the key
            return self.error("refused the key; set OPENAI_API_KEY to yours")
        reason, code = read_refusal(answered.content, key=self.provider.key)
        times = f", {attempt + 1} times" if attempt else ""
        own = (missing, False) if status == 404 and missing else None
        remedy, droppable = _REMEDIES.get(code) or own or _REMEDIES.get(status) or (
            "correct the request's settings" if status < 500 else "`resume` later",
            status >= 500,
        )  # fmt: skip
        paid = status >= 500 and status != 503
        doubt = "; it may have been paid" if paid else ""
        message = f"answered {status}{times} ({reason}){doubt}; {remedy}"
        error = self.error(message, droppable=droppable, may_be_paid=paid)
        if status in (429, 503) and code != "insufficient_quota":
            error.wait = _wait(headers, attempt)
        return error

    def error(
        self,
        message: str,
        *,
        kind: type[ProviderError] = ProviderError,
        droppable: bool = False,
        may_be_paid: bool = False,
    ) -> ProviderError:
        """Returns an error that names the provider.

        Args:
          message: what happened, and the remedy.
          kind: of the error.
          droppable: whether the run can go on without the client.
          may_be_paid: whether the call may have been charged.
        """
        starts = (f"url={self.provider.url}", "max_queries=", "max_cost=")
        error = kind(message if message.startswith(starts) else f"{starts[0]} {message}")
        error.drop = droppable and self.terms.on_failure == "drop"
        error.may_be_paid = may_be_paid
        return error

    def _note(self, bill: Bill) -> None:
        """Reports what is spent, and warns if another model answers than before."""
        if self._watch is not None:
            self._watch(self.journal.spent())
        if not bill.model:  # no model has answered
            return
        seen = (bill.model, bill.fingerprint)
        if self._seen not in (None, seen):
            warnings.warn(f"the provider's model changed from {self._seen} to {seen}", stacklevel=2)
        self._seen = seen


# Code or status of a refusal -> remedy, and whether the run can continue without the client.
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
    """Returns the seconds until a refused call may be repeated; None if they are too many."""
    seconds = 0.5 * 2**attempt
    for name, unit in (("retry-after", 1.0), ("retry-after-ms", 1e-3)):  # the finer one wins
        try:
            named = unit * float(headers.get(name, ""))
        except ValueError:  # missing, or a date
            continue
        seconds = named if named >= 0 else seconds
    return seconds if seconds <= _PATIENCE else None


def rows_per_call(terms: Terms, texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the texts divided into calls: one text per call for chats, else all in one."""
    if terms.style == "chat":
        return [(text,) for text in texts]
    return [tuple(texts)] if texts else []
