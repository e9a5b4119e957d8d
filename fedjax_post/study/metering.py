"""The meter of a run: made, held against an algorithm's own counts, and read for the ledger."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core import access, engine
from fedjax_post.core.algorithm import Algorithm, ClientData
from fedjax_post.core.checked import call
from fedjax_post.core.values import SUMMED, Context
from fedjax_post.data.load import Loaded
from fedjax_post.data.table import TokenTable, gather
from fedjax_post.disclosure import ledger
from fedjax_post.disclosure.examples import Examples, Row
from fedjax_post.disclosure.meter import OUTSIDE, Carried, Form, Meter, Purpose, add, purpose_of
from fedjax_post.disclosure.metered import Metered, silence
from fedjax_post.provider import journal
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.study import rows
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
    tables = rows.tables_of(data)

    def examples() -> Iterator[Row]:
        for table in tables:
            yield from _rows_of(table, special_ids)

    return Meter(form, Examples(examples), refuses=refuses)


def on_host(models: Any, meter: Meter, *, pad_id: int, answer_fn: Callable | None = None) -> Any:
    """Returns the model, or the models of all roles, with the target's calls counted.

    Args:
      models: as an algorithm's access describes them.
      meter: that counts.
      pad_id: fills rows on the right.
      answer_fn: as for `Metered`.
    """
    if not isinstance(models, dict):
        return Metered(models, meter, pad_id=pad_id, answer_fn=answer_fn)
    return models | {"target": on_host(models["target"], meter, pad_id=pad_id, answer_fn=answer_fn)}


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

    Nothing is compiled and the target is not computed: it answers zeros. The first and the last
    client take at most two steps each, from parameters of zeros. An algorithm whose visit does not
    call the target in a trace is not played.

    Args:
      algorithm: the algorithm.
      models: its models, with the target of which only shapes matter.
      params: initial parameters; only shapes matter.
      data: the clients.
      form: of a query.
      meter: of the run; its sums are taken.
      method: name of the algorithm.

    Raises:
      ValueError: if they differ, naming the count.
    """
    if "target" not in algorithm.access or access.Access.READ in algorithm.access["target"]:
        return
    pad_id = data.heldout.pad_id if data.heldout is not None else OUTSIDE
    counting = Meter(form, meter.examples)
    silent = on_host(models, counting, pad_id=pad_id, answer_fn=silence())
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    told = Carried()
    for client_id in sorted({0, len(data.clients) - 1}):
        visit = _shortened(data.clients.visit(client_id, data_rng(0, 0, client_id)))
        metrics = _play(algorithm, silent, zeros, visit, client_id, counting)
        if metrics is None:
            return
        counts = {name: metrics[name] for name in SUMMED if name in metrics}
        told = add([told, ledger.carried_in(counts, form)])
    metered = counting.take().get(Purpose.TRAINING, Carried())
    ledger.confirm(told, metered, method=method)


def sent_by_journal(directory: Path) -> list[ledger.Sent]:
    """Returns what a run has sent to its provider, from its journal of calls."""
    found = journal.carried(directory / "journal.jsonl")
    return [
        (round, purpose_of(round, client_id), carried)
        for (round, client_id), carried in sorted(found.items())
    ]


def _play(algorithm, models, params, data, client_id, meter) -> dict[str, Any] | None:
    """Returns the metrics of a visit without compilation; None if it never calls the target."""
    key = jax.random.key(client_id)
    ctx = Context(key, jnp.int32(0), jnp.int32(client_id))
    replica = engine.broadcast(algorithm, engine.init(algorithm, params))
    with jax.disable_jit():
        view = access.views(_at(models, client_id), algorithm.access)
        state = call(algorithm, "client.init", view, replica, key)
        jax.eval_shape(lambda d: algorithm.client.update(view, replica, state, d, ctx)[1], data)
        if not meter.num_traced:
            return None
        return call(algorithm, "client.update", view, replica, state, data, ctx)[2]


def _at(models: Any, client_id: int) -> Any:
    if not isinstance(models, dict):
        return models.at(0, client_id)
    return models | {"target": models["target"].at(0, client_id)}


def _shortened(data: ClientData) -> ClientData:
    """Returns a visit with its first steps alone."""
    return data._replace(step_mask=data.step_mask & (np.arange(len(data.step_mask)) < _STEPS))


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
