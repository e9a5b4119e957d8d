"""Uses of a run after its end: what they show to the host of its target is counted.

| the target of the run | a use | what was shown is recorded in |
| --- | --- | --- |
| at a provider | asks it | `uses.jsonl`, the journal of these calls |
| in this process, where a closed one is simulated | is computed here | `shown.jsonl` |
| held by the clients, or with a proxy that they hold | is computed here | nothing is shown |

An answer and an evaluation are both uses: whatever is asked after the end of a run. The lines of
its training and its evaluations stay as they are; those of purpose "use" are the sums of the
records, which are on disk before a call is made. They are written after each use, also of an
interrupted one; after one that was killed, with the next.

A call of an evaluation that is repeated exactly, with the same rows and batches, is not made again:
the journal has its answer. A budget is that of all uses together, and their price that of the run.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.core.access import Access
from fedjax_post.disclosure import ledger
from fedjax_post.disclosure.ledger import Entry, Hosting, Price
from fedjax_post.disclosure.meter import OUTSIDE, Carried, Form, Meter, Purpose, add
from fedjax_post.evaluate.generation import NoteFn
from fedjax_post.provider import journal, lines
from fedjax_post.provider.hosted import Hosted
from fedjax_post.provider.inside import Inside
from fedjax_post.report.records import read_summary
from fedjax_post.simulate import stopping
from fedjax_post.study import factories, folder, hosting, ledgers, metered, prompts
from fedjax_post.study.files import WATCH, check_host, check_trusted, read_unsupplied
from fedjax_post.study.spec import Spec

JOURNAL, SHOWN = "uses.jsonl", "shown.jsonl"


class Use(NamedTuple):
    """A run whose use shows something to the host of its target."""

    directory: Path
    spec: Spec
    tokenizer: Any
    is_hosted: bool  # at a provider; otherwise simulated in this process
    is_tuned: bool  # by its host
    inside: Inside | None  # the provider, if it is in this process


class Opened(NamedTuple):
    """How the target of a run is reached in one use; exactly one of both is given."""

    model: Hosted | None  # that is asked
    note_fn: NoteFn | None  # called before each call to a model in this process


def find(
    directory: Path, spec: Spec, tokenizer: Any, *, typed: Mapping[str, Any]
) -> tuple[Spec, Use | None]:
    """Returns a run's specification for its use, and the use; None if it shows nothing.

    Args:
      directory: of the run.
      spec: of the run, with the user's changes.
      tokenizer: of the target.
      typed: these changes, by path.

    Raises:
      ValueError: for a host or code that only the folder names, and for fields that do not go
        together with a hosted target.
    """
    is_elsewhere, is_tuned = _needs(directory, spec)
    if spec.model.proxy or not is_elsewhere:
        return spec, None
    if spec.hosting.url is None and not is_tuned:
        simulated = Use(directory, spec, tokenizer, False, False, None)
        return spec, None if _party(simulated) == Hosting.CLIENT else simulated
    source = directory / folder.SPEC
    if spec.hosting.url is None:  # the host is in this process, and trains as the method says
        check_trusted(spec.put({WATCH: ()}), typed, source=source)
    else:
        check_host(spec, typed, source=source)
    spec = spec.put({"execution.executor": "host"})  # which only training needs
    hosting.check(spec)
    spec = hosting.fill_defaults(spec)
    inside = None
    if spec.hosting.url is None:
        inside = hosting.make_inside(spec, tokenizer, log=directory / hosting.LOG)
    return spec, Use(directory, spec, tokenizer, True, is_tuned, inside)


@contextlib.contextmanager
def opened(
    use: Use, questions: Iterable[Sequence[int]], *, rounds: int = OUTSIDE
) -> Iterator[Opened]:
    """Returns a context in which the target of a run is used, and the run's folder held.

    At its end, also by an error, the ledger is written.

    Args:
      use: of the run.
      questions: as for `ledgers.template_tokens`.
      rounds: number of rounds done, for an evaluation.

    Raises:
      BlockingIOError, PermissionError: if another process writes to the folder, or nobody can.
      DamagedError, JournalError: if the ledger or a record has changed since it was written;
        nothing is sent then.
    """
    template = sum(ledgers.template_tokens(use.spec, use.tokenizer, questions))
    form = Form(template, prompts.places_of(use.spec, use.tokenizer))
    refuses = use.spec.hosting.fail_on_disclosure and _party(use) == Hosting.PROVIDER
    meter = Meter(form, refuses=refuses)
    if not os.access(use.directory, os.W_OK):
        raise PermissionError(
            f"{use.directory} cannot be written, and uses of this run are counted in it; copy it"
        )
    with stopping.defer_signals(), folder.hold(use.directory):
        recorded = read_unsupplied(use.directory / folder.SPEC)
        entries_of(use.directory, recorded)
        ledgers.read(use.directory)
        try:
            if use.is_hosted:
                yield Opened(_ask(use, meter, rounds), None)
            else:
                yield Opened(None, _note_fn(use, meter))
        finally:
            if entries := entries_of(use.directory, recorded):
                ledgers.write_uses(use.directory, entries)


def entries_of(directory: Path, spec: Spec) -> list[Entry]:
    """Returns the entries of all uses of a run so far, by party, from its records.

    Raises:
      JournalError, ValueError: if a record has changed since it was written.
    """
    asked = list(journal.carried(directory / JOURNAL).values())
    shown: dict[Hosting, list[Carried]] = {Hosting.SERVER: [], Hosting.PROVIDER: asked}
    for line, _ in _read(directory / SHOWN):
        shown[Hosting(line["party"])].append(Carried(**line["carries"]))
    price = Price(spec.hosting.price, spec.hosting.price, spec.hosting.price)
    found: list[Entry] = []
    for party, parts in shown.items():
        sent = [(OUTSIDE, Purpose.USE, add(parts))] if parts else []
        found += ledger.account((), sent, hosting=party, price=price)
    return found


def _needs(directory: Path, spec: Spec) -> tuple[bool, bool]:
    """Returns whether a use needs the host of the target, and whether the host tunes it.

    The code of a user's own algorithm is not run: its summary says what it needs.
    """
    name = spec.method.name
    if spec.method.baseline != "none":
        return False, False
    if isinstance(name, str) and ":" not in name:
        access = factories.access_of(name)
        return ledger.serves_elsewhere(access), ledger.is_tuned_by_host(access)
    if not (directory / "summary.json").exists():
        raise ValueError(
            f"{directory} has no summary, which says what {name} asks of the host; let the "
            "run end, or resume it"
        )
    summary = read_summary(directory)
    return summary.get("inference") is not None, summary.get("access") == "FINETUNE"


def _party(use: Use) -> Hosting:
    return Hosting.PROVIDER if use.is_hosted else Hosting(use.spec.hosting.inference)


def _ask(use: Use, meter: Meter, rounds: int) -> Hosted:
    """Returns the target at its provider, as the run has left it."""
    check: Callable = lambda so_far: stopping.check()
    model = hosting.asked_at(
        use.spec,
        use.tokenizer,
        use.inside,
        journal=use.directory / JOURNAL,
        meter=meter,
        access=Access[use.spec.hosting.access],
        ask_again=True,  # a call without an answer counts, and is no reason to refuse the next
        watch=check if rounds == OUTSIDE else hosting.watch(use.spec),
    )
    job = journal.last_job(use.directory / hosting.JOURNAL) if use.is_tuned else None
    model = model if job is None else model.made_by(job)
    return model.at(rounds, OUTSIDE)


def _note_fn(use: Use, meter: Meter) -> NoteFn:
    """Returns the function that records what a call in this process would have shown."""
    path = use.directory / SHOWN
    whole = max((end for _, end in _read(path)), default=0)
    if path.exists() and whole < path.stat().st_size:  # a killed process left a part of a line
        os.truncate(path, whole)

    def note(params, prompts, mask, *, prefix, answer):
        carried = metered.read_call(meter, params, prompts, mask, prefix=prefix, answer=answer)
        meter.check(carried)
        line = {"party": str(_party(use)), "carries": carried._asdict()}
        lines.append(path, line, is_durable=True)

    return note


def _read(path: Path) -> Iterable[tuple[Any, int]]:
    return lines.read(path, check=_check) if path.exists() else ()


def _check(line: Any) -> None:
    """Raises ValueError, KeyError or TypeError for a value that is not a line of `SHOWN`."""
    Hosting(line["party"])
    Carried(**line["carries"])
