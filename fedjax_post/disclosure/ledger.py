"""The disclosure ledger: what clients send in clear, to whom, in each round, and what it costs.

Private is the text of clients' rows; templates and prompts are public. What leaves depends
on two things that are kept apart: how much of the target model a method may touch
(`Access`), and where that model runs (`Hosting`). FedBPT on weights that the client holds
discloses nothing; the same algorithm against a hosted model discloses every question.

| the method asks the target for | client | server | provider |
| --- | --- | --- | --- |
| WEIGHTS, GRADIENTS, or nothing | nothing | nothing | nothing: it runs at the client |
| TEXT, LOGITS, EMBEDDINGS | nothing | questions, to the federation's server | questions, outside |

The server's account is inside the federation: it is listed, and does not count as having left.

Two accounts know nothing of each other: this one, of a run's records and of its data, which
are a function of the seed; and `arrivals`, of the texts that a party says it received.
Sums are exact where every question is put into the same template, one row a query, unpacked;
distinct tokens, where a method asks about every row of a visit (else they are at most so many).
Rows that a method masks in part before it asks count here as if they were whole. What a client
sent before a provider failed it is not in the records, but in the journal of calls.
"""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.core.access import Access, union
from fedjax_post.disclosure.arrivals import Index, OffsetsFn, find, touching


class Hosting(enum.StrEnum):
    """Where the target model's inference runs."""

    CLIENT = "client"
    SERVER = "server"  # of the federation
    PROVIDER = "provider"  # a party outside of it


class DisclosureError(Exception):
    """Private text would leave the federation."""


class Price(NamedTuple):
    """What a provider takes for a million tokens, in any currency."""

    read: float = 0.0  # prompts, templates and questions
    written: float = 0.0  # answers


class Form(NamedTuple):
    """What is the same in every query of a run, in tokens."""

    template: int = 0  # around a row's question, its beginning of sequence included
    prompt: int = 0  # put in front by the method, or tuned
    answer: int = 0  # the longest answer that is paid for
    shot: int = 0  # around a row's question and answer where they are shown as an example


class Entry(NamedTuple):
    """What a party received from all clients in one round."""

    round: int
    party: str  # "server" or "provider"
    outside: bool  # of the federation
    update_bytes: int
    queries: int
    private_tokens: int  # in clear, each time that they were sent
    unique_tokens: int  # of distinct questions, in this round and all before it
    labels: int  # answers of rows, shown beside their questions; their tokens count above
    cost: float  # of the queries, at most, in the currency of the price


def asks(access: Mapping[str, Access]) -> bool:
    """Returns whether a method's training asks the target by its interface.

    It does not where clients hold the target's weights, nor where they train another model
    in its place: a stand-in, or a proxy.
    """
    return Access.READ not in union(access)


def serves_elsewhere(access: Mapping[str, Access]) -> bool:
    """Returns whether what a method made is of use only where the target's owner runs it."""
    return Access.READ not in access.get("target", Access.TEXT)


def hosting_of(access: Mapping[str, Access], wanted: Hosting) -> Hosting:
    """Returns where the target runs: at the client for a method that works on its weights."""
    return wanted if asks(access) else Hosting.CLIENT


def account(
    records: Sequence[Mapping[str, Any]],
    *,
    hosting: Hosting,
    form: Form = Form(),  # noqa: B008 - immutable
    unique: Mapping[int, int] | None = None,
    price: Price = Price(),  # noqa: B008
) -> list[Entry]:
    """Returns the entries of a run, from its records: the server's and the provider's, by round.

    Args:
      records: of `fedjax_post.run`, with `queries`, `tokens_sent` and `labels_sent` where the
        method asks; dropped clients are in these sums.
      hosting: as `hosting_of` gives it.
      form: of the run's queries.
      unique: round -> `unique_tokens`; without, nothing is known of repeats and they are 0.
      price: of the provider.
    """
    entries = []
    for record in records:
        asked = _asked(record, form, unique or {}, price)
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
    """Returns each party's sums over the rounds; `round` is the last, `unique_tokens` too."""
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
    """Returns the tokens of a question that hold no letter of the row that it asks about.

    Args:
      question: a template's text with a row's texts in it, without special tokens.
      literals: what the template has before, between and behind these texts.
      offsets_fn: as for `arrivals`.

    Raises:
      ValueError: if the question is not of this template.
    """
    before, *middle, behind = literals
    end = len(question) - len(behind)
    if not question.startswith(before) or not question.endswith(behind):
        raise ValueError(f"a question does not read {literals}, as its template does")
    at, spans = len(before), []
    for literal in middle:
        found = question.index(literal, at)
        spans.append((at, found))
        at = found + len(literal)
    offsets = offsets_fn(question)
    return len(offsets) - touching(offsets, [*spans, (at, end)])


def unique_tokens(
    visits: Iterable[tuple[int, Mapping[str, Any], Any]], *, template: int
) -> dict[int, int]:
    """Returns round -> private tokens of the distinct questions visited up to its end.

    Nothing has to be kept while a run goes on: a visit is a function of the seed, the round
    and the client, so that those of a finished run are made again for this.

    Args:
      visits: (round, batches, step mask), rounds ascending; batches have "tokens"
        `[..., L]` int and "loss_mask" `[..., L]` bool, the mask `[...]` less the batch axis.
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


def visited(batches: Mapping[str, Any], step_mask: Any, *, template: int) -> tuple[int, int]:
    """Returns the rows of visits, and their private tokens: what asking once would send."""
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
    """Refuses a run that would send private text out of the federation, before it starts.

    Args:
      access: that the method declares.
      hosting: where the target is to run.
      method: its name, for the message.
      rows: of a client's visit, as `visited` counts them.
      tokens: private ones in them.

    Raises:
      DisclosureError: naming the method, what a visit would send, and the remedies.
    """
    if hosting_of(access, hosting) != Hosting.PROVIDER:
        return
    amount = "the questions of a client's rows"
    if rows is not None:
        amount = f"{rows:,} questions with {tokens:,} private tokens each time that it asks once"
    raise DisclosureError(
        f"{method} works by {access['target'].name} of the target model, and inference=provider "
        f"runs that outside of the federation: a visit would send {amount}, in clear; use "
        "inference=client with a model whose weights are open, a method that works on WEIGHTS "
        "or GRADIENTS, or leave `fail_on_disclosure` out"
    )


def make_guard(index: Index) -> Callable[[Sequence[str]], None]:
    """Returns what refuses outgoing texts with private ones in them, before they are sent.

    Args:
      index: of all clients' rows, see `arrivals`.

    Returns:
      `guard(texts)`, which raises `DisclosureError` without repeating what is private.
    """

    def guard(texts: Sequence[str]) -> None:
        found = [len(find(text, index)) for text in texts]
        if any(found):
            raise DisclosureError(
                f"{sum(map(bool, found))} of {len(texts)} queries hold {sum(found)} private "
                "texts, and nothing was sent; ask a model inside of the federation "
                "(inference=client), or leave `fail_on_disclosure` out"
            )

    return guard


_NOTHING = Entry(0, "", False, 0, 0, 0, 0, 0, 0.0)


def _asked(record: Mapping[str, Any], form: Form, unique: Mapping[int, int], price: Price) -> Entry:
    """What a round's queries brought to whoever received them."""
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
    """The rows `[n, L]` that are asked about, and the tokens `[n]` of their questions."""
    tokens, loss_mask = (np.asarray(batches[name]) for name in ("tokens", "loss_mask"))
    real = loss_mask.any(-1) & np.asarray(step_mask, bool)[..., None]
    return tokens[real], loss_mask[real].argmax(-1)
