"""The meter of a run: made, held against an algorithm's own counts, and read for the ledger."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core import access, engine
from fedjax_post.core.algorithm import Algorithm, ClientData
from fedjax_post.core.checked import call
from fedjax_post.core.values import Context, sums_of
from fedjax_post.data.load import Loaded
from fedjax_post.data.table import TokenTable, gather
from fedjax_post.disclosure import ledger
from fedjax_post.disclosure.examples import Examples, Row
from fedjax_post.disclosure.meter import OUTSIDE, Carried, Form, Meter, Purpose, add, purpose_of
from fedjax_post.disclosure.metered import Metered
from fedjax_post.provider import journal
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.study import labels
from fedjax_post.study.spec import Spec

PyTree = Any
EVALUATED = "evaluated"  # entry of a record: what its evaluation has carried
_STEPS, _BLOCK = 2, 1024  # steps of a visit that is played; rows read at once


def make_meter(
    spec: Spec, algorithm: Algorithm, data: Loaded, form: Form, *, special_ids: list[int]
) -> Meter:
    """Returns the meter of a run.

    Args:
      spec: the experiment.
      algorithm: declares its access.
      data: the clients' and the held-out rows, which prompts may show.
      form: number of tokens that every query has in common.
      special_ids: tokens that no example shows.
    """
    hosting = ledger.hosting_of(algorithm.access, ledger.Hosting(spec.hosting.inference))
    refuses = spec.hosting.fail_on_disclosure and hosting == ledger.Hosting.PROVIDER
    tables = labels.tables_of(data)

    def examples() -> Iterator[Row]:
        for table in tables:
            yield from _rows_of(table, special_ids)

    return Meter(form, Examples(examples), refuses=refuses)


def counted(models: Any, meter: Meter, *, pad_id: int, silent: bool = False) -> Any:
    """Returns the model, or the models of all roles, with the target's calls counted.

    Args:
      models: as an algorithm's access describes them.
      meter: that counts.
      pad_id: fills rows on the right.
      silent: as for `Metered`.
    """
    if isinstance(models, dict):
        return models | {"target": counted(models["target"], meter, pad_id=pad_id, silent=silent)}
    return Metered(models, meter, pad_id=pad_id, silent=silent)


class Played(NamedTuple):
    """What some visits have sent to the target."""

    told: Carried  # by the algorithm
    metered: Carried
    num_visits: int


def confirm(
    algorithm: Algorithm,
    models: Any,
    params: PyTree,
    data: Loaded,
    *,
    form: Form,
    meter: Meter,
    method: str,
) -> None:
    """Plays a short visit of two clients, and compares the algorithm's counts with the meter's.

    The target is not computed: it answers zeros. The first and the last client take at most two
    steps each, from parameters of zeros; padding is in their visits as in any other. A visit that
    does not call the target in a trace is not played.

    Args:
      algorithm: the algorithm.
      models: its models, with the target of which only shapes matter.
      params: initial parameters; only shapes matter.
      data: the clients.
      form: of a query.
      meter: of the run, which finds rows in prompts; it counts nothing here.
      method: name of the algorithm.

    Raises:
      ValueError: if they differ, naming the count.
    """
    given = algorithm, models, params, data
    found = play(*given, form=form, examples=meter.examples, max_steps=_STEPS)
    if found is not None:
        ledger.confirm(found.told, found.metered, method=method)


def play(
    algorithm: Algorithm,
    models: Any,
    params: PyTree,
    data: Loaded,
    *,
    form: Form,
    examples: Examples,
    max_steps: int | None = None,
    num_clients: int = 2,
) -> Played | None:
    """Returns what the first visits of some clients send; None if they never ask.

    Args:
      algorithm: the algorithm.
      models: its models, with the target of which only shapes matter: it answers zeros.
      params: initial parameters; only shapes matter.
      data: the clients.
      form: of a query.
      examples: finds rows in prompts.
      max_steps: of a visit; None for all.
      num_clients: the first, the last, and so many between them, evenly spaced.
    """
    if "target" not in algorithm.access or access.Access.READ in algorithm.access["target"]:
        return None
    pad_id = data.heldout.pad_id if data.heldout is not None else OUTSIDE
    counting = Meter(form, examples)
    silent = counted(models, counting, pad_id=pad_id, silent=True)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    visit_fn = partial(_visit, algorithm, _at_client(silent))
    ids = evenly(len(data.clients), num_clients)
    visits = [_shortened(data.clients.visit(i, data_rng(0, 0, i)), max_steps) for i in ids]
    traced = jax.jit(visit_fn).lower(zeros, visits[0], jnp.int32(0))
    if not counting.num_traced:
        return None
    program = traced.compile()
    metrics = [program(zeros, visit, jnp.int32(i)) for visit, i in zip(visits, ids, strict=True)]
    told = add([ledger.carried_in(one, form) for one in jax.device_get(metrics)])
    jax.effects_barrier()
    metered = counting.take().get(Purpose.TRAINING, Carried())
    return Played(told, metered, len(ids))


def evenly(num_clients: int, num: int) -> list[int]:
    """Returns the numbers of at most `num` clients, from the first to the last, evenly spaced."""
    return np.unique(np.linspace(0, num_clients - 1, num).round().astype(int)).tolist()


def sent_by_journal(directory: Path) -> list[ledger.Sent]:
    """Returns what a run has sent to its provider, from its journal of calls."""
    found = journal.carried(directory / "journal.jsonl")
    return [
        (round, purpose_of(round, client_id), carried)
        for (round, client_id), carried in sorted(found.items())
    ]


def _visit(algorithm, models, params, data, client_id):
    """Returns the metrics of a client's first visit that count what it has sent."""
    ctx = Context(jax.random.key(client_id), jnp.int32(0), client_id)
    replica = engine.broadcast(algorithm, engine.init(algorithm, params))
    view = access.views(models, algorithm.access)
    state = call(algorithm, "client.init", view, replica, ctx.key)
    return sums_of(call(algorithm, "client.update", view, replica, state, data, ctx)[2])


def _at_client(models: Any) -> Any:
    if isinstance(models, dict):
        return models | {"target": _at_client(models["target"])}
    return models.at(0, 0)


def _shortened(data: ClientData, max_steps: int | None) -> ClientData:
    """Returns a visit with its first steps alone."""
    if max_steps is None:
        return data
    return data._replace(step_mask=data.step_mask & (np.arange(len(data.step_mask)) < max_steps))


def _rows_of(table: TokenTable, special_ids: list[int]) -> Iterator[Row]:
    """Returns an iterator over the questions and answers of a table, without special tokens."""
    for start in range(0, len(table.length), _BLOCK):
        part = np.arange(start, min(start + _BLOCK, len(table.length)))
        tokens, learned = gather(table, part)
        kept = ~np.isin(tokens, special_ids)
        for ids, keep, answer in zip(tokens, kept, learned, strict=True):
            places = np.flatnonzero(answer)
            if places.size:
                first, end = places[0], places[-1] + 1
                yield ids[:first][keep[:first]].tolist(), ids[first:end][keep[first:end]].tolist()
