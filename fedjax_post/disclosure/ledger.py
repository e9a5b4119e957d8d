"""The disclosure ledger: the text that clients send, to which party, in each round, at what cost.

The text of clients' rows is private; templates and prompts are public. What is disclosed depends
on two independent facts: the access to the target model that a method needs (`Access`), and where
that model runs (`Hosting`). FedBPT on weights that the client holds discloses nothing; the same
algorithm with a hosted model discloses every question.

| access of the method | model at the client | at the federation's server | at a provider |
| --- | --- | --- | --- |
| WEIGHTS, GRADIENTS, or none | nothing | nothing | nothing: the model runs at the client |
| TEXT, LOGITS, EMBEDDINGS | nothing | questions, to the server | questions, to the provider |

The server belongs to the federation: its entries are listed, but do not count as disclosure to the
outside.

There are two independent accounts: this one is computed from a run's records and its data, which
are a function of the seed; `arrivals` counts the texts that a party has logged.
The sums are exact if all questions use the same template, with one unpacked row per query. The
distinct tokens are exact if a method asks about every row of a visit; otherwise they are an upper
bound. Rows that a method masks in part before it asks count as complete. Text that a client sent
before a provider failed is not in the records, but in the journal of calls.
"""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.core.access import Access, union
from fedjax_post.disclosure.arrivals import Index, OffsetsFn, count_touching, find


class Hosting(enum.StrEnum):
    """Where the target model's inference runs."""

    CLIENT = "client"
    SERVER = "server"  # of the federation
    PROVIDER = "provider"  # a party outside of it


class DisclosureError(Exception):
    """Private text would leave the federation."""


class Price(NamedTuple):
    """A provider's price for a million tokens, in any currency."""

    read: float = 0.0  # prompts, templates and questions
    written: float = 0.0  # answers


class Form(NamedTuple):
    """Numbers of tokens that are the same in every query of a run."""

    template: int = 0  # around a row's question, including the beginning-of-sequence token
    prompt: int = 0  # added in front by the method
    answer: int = 0  # the longest answer that may be billed
    shot: int = 0  # around a row's question and answer where they are shown as an example


class Entry(NamedTuple):
    """What one party received from all clients in one round."""

    round: int
    party: str  # "server" or "provider"
    outside: bool  # whether the party is outside the federation
    update_bytes: int
    queries: int
    private_tokens: int  # sent as plain text, counted each time
    unique_tokens: int  # of distinct questions, in this round and all before it
    labels: int  # answers of rows sent with their questions; their tokens count as private too
    cost: float  # maximum cost of the queries, in the currency of the price


def asks(access: Mapping[str, Access]) -> bool:
    """Returns whether a method's training queries the target.

    It does not if clients hold the target's weights, or train another model in its place (an
    emulator or a proxy).
    """
    return Access.READ not in union(access)


def serves_elsewhere(access: Mapping[str, Access]) -> bool:
    """Returns whether a method's result can be used only where the target's owner runs it."""
    return Access.READ not in access.get("target", Access.TEXT)


def hosting_of(access: Mapping[str, Access], wanted: Hosting) -> Hosting:
    """Returns where the target runs: as wanted, or at the client for a method with its weights."""
    return wanted if asks(access) else Hosting.CLIENT


def account(
    records: Sequence[Mapping[str, Any]],
    *,
    hosting: Hosting,
    form: Form = Form(),  # noqa: B008 - immutable
    unique: Mapping[int, int] | None = None,
    price: Price = Price(),  # noqa: B008
) -> list[Entry]:
    """Returns the entries of a run by round: the server's and, if there is one, the provider's.

    Args:
      records: of `fedjax_post.run`, with `queries`, `tokens_sent` and `labels_sent` if the
        method queries the target; these sums include dropped clients.
      hosting: as returned by `hosting_of`.
      form: of the run's queries.
      unique: round -> unique tokens, see the function `unique_tokens`; None: they are 0.
      price: of the provider.

    >>> records = [{"round": 0, "queries": 2, "tokens_sent": 30, "bytes_up": 8}]
    >>> entries = account(records, hosting=Hosting.PROVIDER, form=Form(template=5))
    >>> [(entry.party, entry.private_tokens) for entry in entries]
    [('server', 0), ('provider', 20)]
    """
    entries = []
    for record in records:
        asked = _query_entry(record, form, unique or {}, price)
        parties = [Hosting.SERVER] + [Hosting.PROVIDER] * (hosting == Hosting.PROVIDER)
        for party in parties:
            entry = asked if party == hosting else _NOTHING
            entry = entry._replace(round=record["round"], party=str(party))
            if party == Hosting.SERVER:
                entries.append(entry._replace(update_bytes=int(record["bytes_up"]), cost=0.0))
            else:
                entries.append(entry._replace(outside=True))
    return entries


def totals(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Returns each party's sums over the rounds.

    `round` is the last round, and `unique_tokens` the largest value, as it is cumulative.
    """
    summed: dict[str, Entry] = {}
    for entry in entries:
        before = summed.get(entry.party)
        if before is not None:
            counted = ("update_bytes", "queries", "private_tokens", "labels", "cost")
            both = {name: getattr(before, name) + getattr(entry, name) for name in counted}
            most = max(before.unique_tokens, entry.unique_tokens)
            entry = entry._replace(**both, unique_tokens=most)
        summed[entry.party] = entry
    return summed


def public_tokens(question: str, literals: Sequence[str], *, offsets_fn: OffsetsFn) -> int:
    """Returns the number of tokens of a question without any character of its row.

    Args:
      question: a template filled with a row's texts, without special tokens.
      literals: the template's texts before, between and after those of the row.
      offsets_fn: as for `arrivals`.

    Raises:
      ValueError: if the question does not match the template.
    """
    before, *middle, after = literals
    end = len(question) - len(after)
    if not question.startswith(before) or not question.endswith(after):
        raise ValueError(f"a question does not match its template, {literals}")
    at, spans = len(before), []
    for literal in middle:
        found = question.index(literal, at)
        spans.append((at, found))
        at = found + len(literal)
    offsets = offsets_fn(question)
    return len(offsets) - count_touching(offsets, [*spans, (at, end)])


def unique_tokens(
    visits: Iterable[tuple[int, Mapping[str, Any], Any]], *, template: int
) -> dict[int, int]:
    """Returns round -> private tokens of the distinct questions visited by the end of the round.

    Nothing needs to be saved during a run: a visit is a function of the seed, the round and the
    client, so the visits of a finished run can be computed again.

    Args:
      visits: (round, batches, step mask), rounds ascending; batches have "tokens"
        `[..., L]` int and "loss_mask" `[..., L]` bool, the step mask is `[...]` without the batch
        axis.
      template: as in `Form`.
    """
    seen: set[bytes] = set()
    total, by_round = 0, {}
    for round, batches, step_mask in visits:
        tokens, lengths = _questions(batches, step_mask)
        for row, length in zip(tokens, lengths.tolist(), strict=True):
            question = row[:length].tobytes()
            total += 0 if question in seen else length - template
            seen.add(question)
        by_round[int(round)] = total
    return by_round


def count_visits(batches: Mapping[str, Any], step_mask: Any, *, template: int) -> tuple[int, int]:
    """Returns the number of rows in visits, and the private tokens that one query each would send.

    Args:
      batches: with "tokens" `[..., L]` int and "loss_mask" `[..., L]` bool.
      step_mask: `[...]` bool, without the batch axis.
      template: as in `Form`.
    """
    _, lengths = _questions(batches, step_mask)
    return len(lengths), int(lengths.sum()) - template * len(lengths)


def check_disclosure(
    access: Mapping[str, Access],
    hosting: Hosting,
    *,
    method: str,
    rows: int | None = None,
    tokens: int | None = None,
) -> None:
    """Checks, before a run starts, that it sends no private text out of the federation.

    Args:
      access: declared by the method, by model role.
      hosting: where the target would run.
      method: its name, for the message.
      rows: number of rows of a client's visit, as counted by `count_visits`.
      tokens: number of private tokens in them.

    Raises:
      DisclosureError: naming the method, what a visit would send, and the remedies.
    """
    if hosting_of(access, hosting) != Hosting.PROVIDER:
        return
    amount = "the questions of a client's rows"
    if rows is not None:
        amount = f"{rows:,} questions with {tokens:,} private tokens for one query per row"
    raise DisclosureError(
        f"{method} needs {access['target'].name} of the target model, and inference=provider "
        f"runs that outside the federation: a visit would send {amount}, as plain text; use "
        "inference=client with a model whose weights are open, a method that works on WEIGHTS "
        "or GRADIENTS, or leave `fail_on_disclosure` out"
    )


def make_guard(index: Index) -> Callable[[Sequence[str]], None]:
    """Returns a function that refuses outgoing texts that contain private ones.

    Args:
      index: of all clients' rows, see `arrivals`.

    Returns:
      `guard(texts)`, which raises `DisclosureError`; the message contains no private text.
    """

    def guard(texts: Sequence[str]) -> None:
        found = [len(find(text, index)) for text in texts]
        if any(found):
            raise DisclosureError(
                f"{sum(map(bool, found))} of {len(texts)} queries contain {sum(found)} private "
                "texts, and nothing was sent; use a model inside the federation "
                "(inference=client), or leave `fail_on_disclosure` out"
            )

    return guard


_NOTHING = Entry(0, "", False, 0, 0, 0, 0, 0, 0.0)


def _query_entry(
    record: Mapping[str, Any], form: Form, unique: Mapping[int, int], price: Price
) -> Entry:
    """Returns the entry of the party that received a round's queries."""
    queries, sent, labels = (
        int(record.get(name, 0)) for name in ("queries", "tokens_sent", "labels_sent")
    )
    read, written = sent + queries * form.prompt, queries * form.answer
    return _NOTHING._replace(
        queries=queries,
        private_tokens=sent - queries * form.template - labels * form.shot,
        unique_tokens=unique.get(record["round"], 0),
        labels=labels,
        cost=(read * price.read + written * price.written) / 1e6,
    )


def _questions(batches: Mapping[str, Any], step_mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows `[n, L]` that are asked about, and the lengths `[n]` of their questions."""
    tokens, loss_mask = (np.asarray(batches[name]) for name in ("tokens", "loss_mask"))
    real = loss_mask.any(-1) & np.asarray(step_mask, bool)[..., None]
    return tokens[real], loss_mask[real].argmax(-1)
