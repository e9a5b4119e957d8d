"""The disclosure ledger of a run: where the target runs, and which data left for it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.core.access import Access, check_access, spoken
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.data.columns import Columns
from fedjax_post.data.load import Loaded
from fedjax_post.data.table import TokenTable, gather
from fedjax_post.data.template import make_prompt
from fedjax_post.disclosure import ledger
from fedjax_post.disclosure.arrivals import offsets_of
from fedjax_post.disclosure.ledger import Entry, Hosting, Price, Sent
from fedjax_post.disclosure.meter import Carried, Form, Purpose, add
from fedjax_post.integrity import read_lines
from fedjax_post.provider import codec
from fedjax_post.report.records import read_records
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.plan import Plan
from fedjax_post.simulate.visits import visits
from fedjax_post.study import folder, hosting, metering, prompts
from fedjax_post.study.spec import Spec

DISCLOSURE = "disclosure.jsonl"


def check(spec: Spec, algorithm: Algorithm, data: Loaded, form: Form) -> None:
    """Checks the access that an algorithm needs, and what it would disclose.

    Args:
      spec: the experiment.
      algorithm: declares its access.
      data: the clients; the first one's visit is examined.
      form: number of tokens that every query has in common.

    Raises:
      AccessError: if the algorithm needs more than is granted, naming both tiers.
      DisclosureError: with `hosting.fail_on_disclosure`, naming what a visit would send.
    """
    granted = dict.fromkeys(algorithm.access, Access.GRADIENTS)
    check_access(algorithm.access, granted | {"target": hosting.granted(spec)})
    if spec.hosting.fail_on_disclosure:
        visit = data.clients.visit(0, data_rng(spec.seed, 0, 0))
        rows, tokens = ledger.count_visits(visit.batches, visit.step_mask, template=form.template)
        ledger.check_disclosure(
            algorithm.access,
            Hosting(spec.hosting.inference),
            method=spec.method.name,
            rows=rows,
            tokens=tokens,
        )


def form_of(
    spec: Spec,
    tokenizer: Any,
    *,
    access: Mapping[str, Access],
    table: TokenTable,
    longest: int,
) -> Form:
    """Returns the number of tokens that every query of a run has in common, in training or in use.

    Args:
      spec: the experiment.
      tokenizer: of the target.
      access: declared by the algorithm, by model role.
      table: rows with the same template as the clients' rows.
      longest: number of tokens of the longest response, its end included.
    """
    if not ledger.serves_elsewhere(access):
        return Form()
    head, around = template_tokens(spec, tokenizer, questions_in(table))
    needed = access.get("target", Access.TEXT)
    answer = 1 if Access.SCORES in needed else longest
    prompt = prompts.places_of(spec, tokenizer)
    # an upload shows answers without a template
    shot = 0 if ledger.is_tuned_by_host(access) else around
    return Form(template=head + around, prompt=prompt, answer=answer, shot=shot)


def template_tokens(
    spec: Spec, tokenizer: Any, questions: Iterable[Sequence[int]]
) -> tuple[int, int]:
    """Returns the tokens that begin every text, and the template's tokens around a question.

    The latter are counted in the first question in which the template is recognised. If there is
    none, all tokens count as private and the number is 0.

    Args:
      spec: the experiment, with its template.
      tokenizer: of the target.
      questions: token ids, with those of the template.
    """
    template, mark = prompts.template_of(spec), "\0"
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    row = dict.fromkeys((*names, "prompt"), mark) | {"response": "."}
    prompt = make_prompt(
        tokenizer, Columns(prompt="prompt", response="response"), template=template
    )
    literals, offsets_fn = prompt(row).split(mark), offsets_of(tokenizer)
    head = 0
    for ids in questions:
        head = int(codec.is_headed(tokenizer, ids))
        question = codec.decode_prompt(tokenizer, ids)
        with contextlib.suppress(ValueError):
            return head, ledger.public_tokens(question, literals, offsets_fn=offsets_fn)
    return head, 0


def questions_in(table: TokenTable) -> Iterator[list[int]]:
    """Returns an iterator over the questions of a table's first 64 rows, as token ids."""
    for number in range(min(len(table.length), 64)):
        length = int(table.prompt_length[number])
        yield gather(table, np.array([number]))[0][0, :length].tolist()


class Ledger(NamedTuple):
    """The ledger of a run."""

    entries: list[Entry]
    sent: list[Sent]  # to whoever hosts the target, also if that is the client itself
    by: str  # how this was counted


def ledger_of(
    spec: Spec,
    algorithm: Algorithm,
    data: Loaded,
    plan: Plan,
    form: Form,
    *,
    evaluated: Sequence[Sent] = (),
) -> Ledger:
    """Returns the ledger of a finished run.

    Args:
      spec: the experiment.
      algorithm: declares its access.
      data: the clients.
      plan: of the run, with its folder.
      form: number of tokens that every query has in common.
      evaluated: by the meter, what evaluations outside the rounds have sent.
    """
    directory = Path(plan.directory or "")
    records = read_records(directory)
    place = ledger.hosting_of(algorithm.access, Hosting(spec.hosting.inference))
    if hosting.is_hosted(spec):
        sent, by = metering.sent_by_journal(directory), "the journal of calls"
    else:
        sent = [*evaluated, *_sent_in_rounds(records, data, plan, form)]
        on_host = spec.execution.executor == "host"
        by = "the meter" if on_host else "the algorithm's counts, confirmed by the meter"
    price = Price(spec.hosting.price, spec.hosting.price, spec.hosting.price)
    return Ledger(ledger.account(records, sent, hosting=place, price=price), sent, by)


def _sent_in_rounds(records, data: Loaded, plan: Plan, form: Form) -> Iterator[Sent]:
    """Returns an iterator over what the rounds of a run have sent, by their records."""
    asked: dict[int, dict[str, int]] = {}
    if any(record.get("queries") for record in records):
        found = _visits(data, plan, len(records))
        asked = ledger.distinct_questions(found, template=form.template)
    for record in records:
        carried = ledger.carried_in(record, form)
        if carried.queries:
            distinct = asked.get(record["round"], {})
            yield record["round"], Purpose.TRAINING, carried._replace(distinct=distinct)
        if metering.EVALUATED in record:
            tested = Carried(**record[metering.EVALUATED])
            yield record["round"] + 1, Purpose.EVALUATION, tested


def disclosure_summary(spec: Spec, found: Ledger, access: Mapping[str, Access]) -> dict[str, Any]:
    """Returns the totals of what left the federation, for `summary.json`.

    Args:
      spec: the experiment.
      found: the ledger.
      access: declared by the algorithm, by model role.
    """
    elsewhere = ledger.serves_elsewhere(access)
    training = [carried for _, purpose, carried in found.sent if purpose == Purpose.TRAINING]
    return {
        **_outside(found.entries, Purpose.TRAINING),
        "evaluation": _outside(found.entries, Purpose.EVALUATION),
        "if_hosted": add(training).private_tokens,
        "serving_discloses": elsewhere and spec.hosting.inference == Hosting.PROVIDER,
        "counted_by": found.by,
    }


def _outside(entries: Sequence[Entry], purpose: Purpose) -> dict[str, Any]:
    """Returns the totals of what left the federation for one purpose."""
    left = [entry for entry in entries if entry.outside and entry.purpose == purpose]
    total = ledger.totals(left).get(str(Hosting.PROVIDER))
    return {
        "private_tokens": total.private_tokens if total else 0,
        "unique_private_tokens": total.unique_tokens if total else 0,
        "labels": total.labels if total else 0,
        "queries": total.queries if total else 0,
        "cost": total.cost if total else 0.0,
    }


def tier_of(access: Mapping[str, Access]) -> str:
    """Returns the access tier of a method: that on the target.

    It is EMULATOR if it trains on one, and FINETUNE if the target's host trains.
    """
    if "emulator" in access:
        return "EMULATOR"
    return "FINETUNE" if ledger.is_tuned_by_host(access) else spoken(access["target"])


def place_of(spec: Spec, access: Mapping[str, Access]) -> str | None:
    """Returns where the target runs; None if neither training nor serving queries it."""
    asked = ledger.asks(access) or ledger.serves_elsewhere(access)
    return spec.hosting.inference if asked else None


def write(directory: Path, entries: Sequence[Entry], uses: Sequence[Entry]) -> None:
    """Writes `disclosure.jsonl`, one line for each round, party and purpose; uses come last."""
    lines = (entry._asdict() for entry in (*entries, *uses))
    folder.write_lines(directory / DISCLOSURE, lines)


def write_uses(directory: Path, uses: Sequence[Entry]) -> None:
    """Replaces the lines of uses in `disclosure.jsonl`; all others stay as they are."""
    kept = [line for line in read(directory) if line.get("purpose") != Purpose.USE]
    lines = [*kept, *(entry._asdict() for entry in uses)]
    folder.write_lines(directory / DISCLOSURE, lines)


def read(directory: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's `disclosure.jsonl`; none without the file.

    Raises:
      DamagedError: if a line has changed since it was written.
    """
    path = directory / DISCLOSURE
    return list(read_lines(path)) if path.exists() else []


def _visits(data: Loaded, plan: Plan, rounds: int) -> Iterator[tuple[int, Any, Any]]:
    """Returns an iterator over the visits of a run, which are functions of its seed."""
    for taken in visits(plan, len(data.clients), range(rounds)):
        rng = data_rng(plan.seed, taken.began, taken.client_id)
        visit = data.clients.visit(taken.client_id, rng)
        yield taken.round, visit.batches, visit.step_mask
