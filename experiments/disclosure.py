"""From flags to the disclosure ledger: where the target runs, and what left because of it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
from absl import flags

from experiments import folder, prompts
from fedjax_post.core.access import Access, check_access
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.data.columns import Columns
from fedjax_post.data.load import Loaded
from fedjax_post.data.table import TokenTable, gather
from fedjax_post.data.template import make_prompt
from fedjax_post.openness import ledger
from fedjax_post.openness.arrivals import offsets_of
from fedjax_post.openness.ledger import Entry, Form, Hosting, Price
from fedjax_post.provider import codec
from fedjax_post.report.records import read_records
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.run import Plan
from fedjax_post.simulate.visits import visits


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    tiers = [tier.name for tier in Access]
    grants = "what the model is taken to grant; an algorithm that needs more is refused"
    flags.DEFINE_enum(
        "access", "GRADIENTS", tiers, grants, case_sensitive=False, flag_values=values
    )
    places = [str(place) for place in Hosting]
    where = "where the target's inference runs, for algorithms that do not hold its weights"
    flags.DEFINE_enum("inference", "client", places, where, flag_values=values)
    refuse = "refuse to send private text out of the federation"
    flags.DEFINE_bool("fail_on_disclosure", False, refuse, flag_values=values)
    price = "of a million tokens, read or written, at the provider"
    flags.DEFINE_float("price", 0.0, price, lower_bound=0.0, flag_values=values)


def check(options: flags.FlagValues, algorithm: Algorithm, data: Loaded, form: Form) -> None:
    """Refuses an algorithm that needs more than is granted, or sends what must not leave.

    Raises:
      AccessError: naming both tiers and what would have to be open.
      DisclosureError: naming what a visit would send.
    """
    granted = dict.fromkeys(algorithm.access, Access.GRADIENTS)
    check_access(algorithm.access, granted | {"target": Access[options.access]})
    if options.fail_on_disclosure:
        visit = data.clients.visit(0, data_rng(options.seed, 0, 0))
        rows, tokens = ledger.visited(visit.batches, visit.step_mask, template=form.template)
        ledger.check_disclosure(
            algorithm.access,
            Hosting(options.inference),
            method=options.algorithm,
            rows=rows,
            tokens=tokens,
        )


def form_of(
    options: flags.FlagValues,
    tokenizer: Any,
    *,
    access: Mapping[str, Access],
    table: TokenTable,
    longest: int,
) -> Form:
    """Returns the tokens that are the same in every query of a run.

    Args:
      options: parsed flags.
      tokenizer: of the target.
      access: that the algorithm declares.
      table: rows in the template of the clients' rows.
      longest: tokens of the longest response, its end included.
    """
    if not ledger.asks(access):
        return Form()
    head, around = _template_tokens(options, tokenizer, table)
    answer = longest if access["target"] == Access.TEXT else 1
    prompt = prompts.places_of(options, tokenizer)
    return Form(template=head + around, prompt=prompt, answer=answer, shot=around)


def _template_tokens(
    options: flags.FlagValues, tokenizer: Any, table: TokenTable
) -> tuple[int, int]:
    """Tokens that begin every text, and those of the template in the first row that shows it.

    A template that no row shows as it stands counts as private: 0.
    """
    template, mark = prompts.template_of(options), "\0"
    names = [name for _, name, _, _ in Formatter().parse(template) if name]
    row = dict.fromkeys((*names, "prompt"), mark) | {"response": "."}
    prompt_fn = make_prompt(tokenizer, Columns("prompt", "response"), template=template)
    literals, offsets_fn = prompt_fn(row).split(mark), offsets_of(tokenizer)
    head = 0
    for number in range(min(len(table.length), 64)):
        length = int(table.prompt_length[number])
        ids = gather(table, np.array([number]))[0][0, :length].tolist()
        head = int(codec.is_headed(tokenizer, ids))
        question = codec.decode_prompt(tokenizer, ids)
        with contextlib.suppress(ValueError):
            return head, ledger.public_tokens(question, literals, offsets_fn=offsets_fn)
    return head, 0


def entries_of(
    options: flags.FlagValues, algorithm: Algorithm, data: Loaded, plan: Plan, form: Form
) -> list[Entry]:
    """Returns the ledger of a run that has ended, by round and party."""
    records = read_records(Path(plan.directory or ""))
    hosting = ledger.hosting_of(algorithm.access, Hosting(options.inference))
    unique = None
    if hosting != Hosting.CLIENT and any(record.get("queries") for record in records):
        visits = _visits(data, plan, len(records))
        unique = ledger.unique_tokens(visits, template=form.template)
    price = Price(options.price, options.price)
    return ledger.account(records, hosting=hosting, form=form, unique=unique, price=price)


def told(
    options: flags.FlagValues, entries: list[Entry], access: Mapping[str, Access]
) -> dict[str, Any]:
    """Returns what left the federation in all, for `summary.json`."""
    elsewhere = ledger.serves_elsewhere(access)
    outside = ledger.totals([entry for entry in entries if entry.outside])
    total = outside.get(str(Hosting.PROVIDER))
    return {
        "private_tokens": total.private_tokens if total else 0,
        "unique_private_tokens": total.unique_tokens if total else 0,
        "labels": total.labels if total else 0,
        "queries": total.queries if total else 0,
        "cost": total.cost if total else 0.0,
        "serving_discloses": elsewhere and options.inference == Hosting.PROVIDER,
    }


def tier_of(access: Mapping[str, Access]) -> str:
    """Returns the tier by which a method works on the target: EMULATOR where that stands in."""
    return "EMULATOR" if "emulator" in access else access["target"].name


def place_of(options: flags.FlagValues, access: Mapping[str, Access]) -> str | None:
    """Returns where the target is taken to run; None where neither training nor use asks it."""
    asked = ledger.asks(access) or ledger.serves_elsewhere(access)
    return options.inference if asked else None


def write(directory: Path, entries: list[Entry]) -> None:
    """Writes `disclosure.jsonl`: a line for each round and party."""
    lines = [json.dumps(entry._asdict()) + "\n" for entry in entries]
    folder.write_text(directory / "disclosure.jsonl", "".join(lines))


def _visits(data: Loaded, plan: Plan, rounds: int) -> Iterator[tuple[int, Any, Any]]:
    """The visits of a run once more; they are functions of its seed."""
    for taken in visits(plan, len(data.clients), range(rounds)):
        rng = data_rng(plan.seed, taken.began, taken.client_id)
        visit = data.clients.visit(taken.client_id, rng)
        yield taken.round, visit.batches, visit.step_mask
