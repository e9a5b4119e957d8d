"""Counts what a run in this process sends to its target: in rounds on the host, and in evaluations.

A hosted target counts its own calls, see `provider.calls`; so nothing is counted here for it.
"""

from collections.abc import Callable
from typing import Any

from fedjax_post.core.values import SUMMED
from fedjax_post.disclosure.ledger import Sent, serves_elsewhere
from fedjax_post.disclosure.meter import OUTSIDE, Carried, Meter, Purpose, add
from fedjax_post.disclosure.metered import real_rows
from fedjax_post.evaluate.generation import NoteFn
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.scores import Outcomes, measure
from fedjax_post.provider.hosted import Hosted
from fedjax_post.simulate import stopping
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import hosting, metering
from fedjax_post.study.build import Parts


def training(parts: Parts) -> tuple[Any, list[Callback]]:
    """Returns the models that a run trains with, and the callbacks that record what was counted."""
    if not _is_counted(parts):
        return parts.model, []
    counts = parts.spec.execution.executor == "host"
    callback = _watch(parts.meter, replaces=counts)
    if not counts or "target" not in parts.algorithm.access:
        return parts.model, [callback]
    pad_id = parts.heldout.table.pad_id
    return metering.counted(parts.model, parts.meter, pad_id=pad_id), [callback]


def note_fn(parts: Parts, rounds: int) -> Callable | None:
    """Returns the function that counts an evaluation after some rounds; None if nothing leaves."""
    if not _is_counted(parts):
        return None
    meter = parts.meter

    def note(params, prompts, mask, *, prefix, answer):
        carried = read_call(meter, params, prompts, mask, prefix=prefix, answer=answer)
        meter.note(carried, round=rounds, client_id=OUTSIDE)

    return note


def read_call(
    meter: Meter, params: Any, prompts: Any, mask: Any, *, prefix: Any, answer: int
) -> Carried:
    """Returns what a call carries, given as to a `NoteFn`; nothing is added to the sums."""
    rows = real_rows(prompts, mask, prefix=prefix)
    return add(meter.read(params if isinstance(params, dict) else {}, rows, answer=answer))


def measure_at(
    made: tuple[Any, Any], heldout: HeldOut, *, rounds: int, note_fn: NoteFn | None = None
) -> Outcomes:
    """Returns the outcomes of what is deployed after some rounds.

    Args:
      made: the model and its parameters. A hosted model journals its calls under these rounds.
      heldout: the rows.
      rounds: number of rounds done.
      note_fn: counts the calls to a model in this process; a hosted one counts them itself.
    """
    model: Any
    model, params = made
    if not isinstance(model, Hosted):
        return measure(model, params, heldout, note_fn=note_fn)
    asked: Any = model.at(rounds, OUTSIDE)
    with stopping.defer_signals():  # an interrupted call may have been paid for
        return measure(asked, params, heldout)


def evaluated(parts: Parts, *, rounds: int) -> list[Sent]:
    """Returns what was counted since the last call, as an evaluation after some rounds."""
    taken = parts.meter.take()
    found = taken.get(Purpose.EVALUATION)
    return [] if found is None else [(rounds, Purpose.EVALUATION, found)]


def _is_counted(parts: Parts) -> bool:
    return serves_elsewhere(parts.algorithm.access) and not hosting.is_hosted(parts.spec)


def _watch(meter: Meter, *, replaces: bool) -> Callback:
    """Returns a callback that records what the meter has counted since the last one.

    Args:
      meter: of the run.
      replaces: whether training runs through the meter, whose counts replace the algorithm's.
    """

    def callback(state: Any, record: Record) -> Record:
        del state
        taken = meter.take()
        found: Record = {}
        trained = taken.get(Purpose.TRAINING)
        if replaces and trained is not None:
            counts = trained.queries, trained.tokens, trained.labels, trained.places
            found |= dict(zip(SUMMED, map(float, counts), strict=True))
        if Purpose.EVALUATION in taken:
            # Its rows are among those of the evaluation after the last round, which names them
            found[metering.EVALUATED] = taken[Purpose.EVALUATION]._replace(distinct={})._asdict()
        return found

    return callback
