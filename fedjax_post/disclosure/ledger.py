"""The disclosure ledger: what each party received, by round and purpose, at what cost.

The text of clients' rows is private; templates and prompts are public. What is disclosed depends
on two independent facts: the access to the target model that a method needs (`Access`), and where
that model runs (`Hosting`). FedBPT on weights that the client holds discloses nothing; the same
algorithm with a hosted model discloses every question. Fine-tuning by the host (FINETUNE) discloses
every row with its answer, once.

| access to the target | model at the client | at the federation's server | at a provider |
| --- | --- | --- | --- |
| WEIGHTS, GRADIENTS | nothing | nothing | nothing: the model runs at the client |
| TEXT to EMBEDDINGS, or none | nothing | questions, to the server | questions, to it |

The server belongs to the federation: its entries are listed, but do not count as disclosure to the
outside.

The entries are what the `meter` has counted. For rounds that were compiled they are an algorithm's
own counts, which stand only because the meter has confirmed them, see `confirm`; their distinct
questions are those of the rows visited, an upper bound if a method does not ask about each of
them. `arrivals` is an independent second account: it counts the texts that a party has logged.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.core.access import Access, spoken, union
from fedjax_post.core.values import SUMMED
from fedjax_post.disclosure.arrivals import OffsetsFn, count_touching
from fedjax_post.disclosure.meter import Carried, DisclosureError, Form, Purpose, digest


class Hosting(enum.StrEnum):
    """Where the target model's inference runs."""

    CLIENT = "client"
    SERVER = "server"  # of the federation
    PROVIDER = "provider"  # a party outside of it


class Price(NamedTuple):
    """A provider's price for a million tokens, in any currency."""

    read: float = 0.0  # prompts, templates and questions
    written: float = 0.0  # answers
    trained: float = 0.0  # tokens of a fine-tuning job, in each epoch


class Entry(NamedTuple):
    """What one party received from all clients in one round, for one purpose."""

    round: int  # for an evaluation, the number of rounds done; -1 for a use
    party: str  # "server" or "provider"
    purpose: str  # "training", "evaluation" or "use"
    outside: bool  # whether the party is outside the federation
    update_bytes: int = 0
    queries: int = 0
    private_tokens: int = 0  # sent as plain text, counted each time
    unique_tokens: int = 0  # of distinct questions, for this purpose up to this round
    labels: int = 0  # answers of rows sent with their questions; their tokens count as private too
    cost: float = 0.0  # maximum cost of the queries, in the currency of the price


# (round, purpose, what was sent to the party that hosts the target)
Sent = tuple[int, Purpose, Carried]


def asks(access: Mapping[str, Access]) -> bool:
    """Returns whether a method's training queries the target.

    It does not if clients hold the target's weights, or train another model in its place (an
    emulator or a proxy).
    """
    return Access.READ not in union(access)


def is_tuned_by_host(access: Mapping[str, Access]) -> bool:
    """Returns whether a method has the target's host fine-tune it."""
    return Access.FINETUNE in access.get("target", Access.TEXT)


def serves_elsewhere(access: Mapping[str, Access]) -> bool:
    """Returns whether a method's result can be used only where the target's owner runs it."""
    return Access.READ not in access.get("target", Access.TEXT)


def hosting_of(access: Mapping[str, Access], wanted: Hosting) -> Hosting:
    """Returns where the target runs: as wanted, or at the client for a method with its weights."""
    return wanted if serves_elsewhere(access) else Hosting.CLIENT


def carried_in(record: Mapping[str, Any], form: Form) -> Carried:
    """Returns what a round's training has sent, by the algorithm's own counts.

    Args:
      record: of `fedjax_post.run`, with `queries`, `tokens_sent` and `labels_sent` if the method
        queries the target, and `places_sent` if its prompts have further tokens than `form.prompt`;
        these sums include dropped clients.
      form: of the run's queries.
    """
    queries, tokens, labels = (
        int(record.get(name, 0)) for name in ("queries", "tokens_sent", "labels_sent")
    )
    private = tokens - queries * form.template - labels * form.shot
    places = int(record.get("places_sent", queries * form.prompt))
    return Carried(queries, tokens, private, labels, places, queries * form.answer)


def confirm(told: Carried, metered: Carried, *, method: str) -> None:
    """Checks an algorithm's counts of some visits against the meter's.

    Args:
      told: by the algorithm, see `carried_in`.
      metered: of the same visits.
      method: its name, for the message.

    Raises:
      ValueError: naming the first count that differs, and both values.
    """
    names = {
        "queries": "queries",
        "private_tokens": "private tokens",
        "labels": "labels",
        "places": "tokens of its prompts",
    }
    for field, name in names.items():
        own, seen = getattr(told, field), getattr(metered, field)
        if own != seen:
            raise ValueError(
                f"{method} counts {own} {name} in visits in which it sends {seen} to the target; "
                f"return the metrics {', '.join(f'`{one}`' for one in SUMMED)} of all its calls, "
                "or run with executor=host, where the meter counts"
            )


def account(
    records: Sequence[Mapping[str, Any]],
    sent: Iterable[Sent],
    *,
    hosting: Hosting,
    price: Price = Price(),  # noqa: B008 - immutable
) -> list[Entry]:
    """Returns the entries of a run by round, party and purpose.

    Args:
      records: of the rounds, with their `bytes_up`.
      sent: what went to the host of the target, rounds ascending.
      hosting: as returned by `hosting_of`.
      price: of the provider.

    >>> sent = [(0, Purpose.TRAINING, Carried(queries=2, private_tokens=20))]
    >>> entries = account([{"round": 0, "bytes_up": 8}], sent, hosting=Hosting.PROVIDER)
    >>> [(entry.party, entry.private_tokens) for entry in entries]
    [('server', 0), ('provider', 20)]
    """
    found: dict[tuple[int, Purpose, Hosting], Entry] = {}
    for record in records:
        key = record["round"], Purpose.TRAINING, Hosting.SERVER
        found[key] = _blank(*key)._replace(update_bytes=int(record["bytes_up"]))
    seen: dict[Purpose, dict[str, int]] = {}
    for round, purpose, carried in sent if hosting != Hosting.CLIENT else ():
        key = round, purpose, hosting
        seen[purpose] = seen.get(purpose, {}) | dict(carried.distinct)
        before = found.get(key, _blank(*key))
        read, written = carried.tokens - carried.filed + carried.places, carried.answers
        paid = hosting == Hosting.PROVIDER
        bill = read * price.read + written * price.written + carried.trained * price.trained
        found[key] = before._replace(
            queries=before.queries + carried.queries,
            private_tokens=before.private_tokens + carried.private_tokens,
            labels=before.labels + carried.labels,
            unique_tokens=sum(seen[purpose].values()),
            cost=before.cost + paid * bill / 1e6,
        )
    order = {Hosting.SERVER: 0, Hosting.PROVIDER: 1}
    keys = sorted(found, key=lambda key: (list(Purpose).index(key[1]), key[0], order[key[2]]))
    return [found[key] for key in keys]


def totals(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Returns each party's sums over the rounds, of entries of one purpose.

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


def distinct_questions(
    visits: Iterable[tuple[int, Mapping[str, Any], Any]], *, template: int
) -> dict[int, dict[str, int]]:
    """Returns round -> digest of each question visited in it -> its private tokens.

    Nothing needs to be saved during a run: a visit is a function of the seed, the round and the
    client, so the visits of a finished run can be computed again.

    Args:
      visits: (round, batches, step mask); batches have "tokens" `[..., L]` int and "loss_mask"
        `[..., L]` bool, the step mask is `[...]` without the batch axis.
      template: as in `Form`.
    """
    by_round: dict[int, dict[str, int]] = {}
    for round, batches, step_mask in visits:
        tokens, lengths = _questions(batches, step_mask)
        found = by_round.setdefault(int(round), {})
        for row, length in zip(tokens, lengths.tolist(), strict=True):
            found[digest(row[:length])] = max(0, length - template)
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
    """Checks that a method does not disclose private text by design, before a run begins.

    Args:
      access: declared by the algorithm, by model role.
      hosting: where the target would run.
      method: its name.
      rows: number of rows of a client's visit, as counted by `count_visits`.
      tokens: number of private tokens in them.

    Raises:
      DisclosureError: naming the method, what would be sent, and the remedies.
    """
    if hosting_of(access, hosting) != Hosting.PROVIDER:
        return
    what = f"needs {spoken(access['target'])} of" if "target" in access else "is served by"
    amount = "an evaluation would send all held-out questions"
    if asks(access):
        amount = "a visit would send the questions of a client's rows"
        if rows is not None:
            amount = (
                f"a visit would send {rows:,} questions with {tokens:,} private tokens for one "
                "query per row"
            )
    raise DisclosureError(
        f"{method} {what} the target model, and inference=provider runs that outside the "
        f"federation: {amount}, as plain text; use inference=client with a model whose weights "
        "are open, a method that works on WEIGHTS or GRADIENTS, or leave `fail_on_disclosure` out"
    )


def _blank(round: int, purpose: Purpose, party: Hosting) -> Entry:
    return Entry(round, str(party), str(purpose), outside=party == Hosting.PROVIDER)


def _questions(batches: Mapping[str, Any], step_mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows `[n, L]` that are asked about, and the lengths `[n]` of their questions."""
    tokens, loss_mask = (np.asarray(batches[name]) for name in ("tokens", "loss_mask"))
    real = loss_mask.any(-1) & np.asarray(step_mask, bool)[..., None]
    return tokens[real], loss_mask[real].argmax(-1)
