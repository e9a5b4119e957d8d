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
_STEPS, _ROUNDS = 2, 2  # that are played: steps of a visit, and rounds
_BLOCK = 1024  # rows read at once


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
    meter: Meter,
    method: str,
) -> None:
    """Plays two short rounds of two clients, and compares the algorithm's counts with the meter's.

    The target is not computed: it answers zeros. The first and the last client take at most two
    steps a round, from parameters of zeros; padding is in their visits as in any other. The second
    round begins with the states of the clients and of the server that the first one returns, since
    counts may depend on them. An algorithm that does not call the target in a trace is not played.

    Args:
      algorithm: the algorithm.
      models: its models, with the target of which only shapes matter.
      params: initial parameters; only shapes matter.
      data: the clients.
      meter: of the run, whose queries have the same form; it counts nothing here.
      method: name of the algorithm.

    Raises:
      ValueError: if they differ, naming the count.
    """
    given = algorithm, models, params, data
    found = play(*given, meter=meter, max_steps=_STEPS, num_rounds=_ROUNDS)
    if found is not None:
        ledger.confirm(found.told, found.metered, method=method)


def play(
    algorithm: Algorithm,
    models: Any,
    params: PyTree,
    data: Loaded,
    *,
    meter: Meter,
    max_steps: int | None = None,
    num_clients: int = 2,
    num_rounds: int = 1,
) -> Played | None:
    """Returns what the first rounds of some clients send; None if they never ask.

    Rounds are played as the engine does, with two exceptions: no visit is dropped, whatever it
    returns, and an uplink begins anew in each.

    Args:
      algorithm: the algorithm.
      models: its models, with the target of which only shapes matter: it answers zeros.
      params: initial parameters; only shapes matter.
      data: the clients.
      meter: of the run, whose queries have the same form; it counts nothing here.
      max_steps: of a visit; None for all.
      num_clients: the first, the last, and so many between them, evenly spaced.
      num_rounds: each of them with all of these clients.
    """
    if "target" not in algorithm.access or access.Access.READ in algorithm.access["target"]:
        return None
    pad_id = data.heldout.pad_id if data.heldout is not None else OUTSIDE
    counting = Meter(meter.form, meter.examples)
    silent = _at_client(counted(models, counting, pad_id=pad_id, silent=True))
    view = access.views(silent, algorithm.access)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    ids = evenly(len(data.clients), num_clients)
    drawn = lambda i, round: _shortened(data.clients.visit(i, data_rng(0, round, i)), max_steps)
    begin, visit, close = (jax.jit(partial(fn, algorithm, view)) for fn in (_begin, _visit, _close))
    shapes = jax.eval_shape(begin, zeros, jax.random.key(0))
    traced = visit.lower(*shapes[1:], drawn(0, 0), _context(0, 0))
    if not counting.num_traced:
        return None
    begun = {i: begin(zeros, jax.random.key(i)) for i in ids}
    held, (state, replica, _) = {i: one[-1] for i, one in begun.items()}, begun[0]
    program, told = traced.compile(), []
    for round in range(num_rounds):
        visited = []
        for i in ids:
            given = replica, held[i], drawn(i, round), _context(i, round)
            value, held[i], sums = program(*given)
            visited.append(value)
            told.append(sums)
        if round + 1 < num_rounds:
            values = jax.tree.map(lambda *x: jnp.stack(x), *visited)
            state, replica = close(state, replica, *values)
    carried = add([ledger.carried_in(one, meter.form) for one in jax.device_get(told)])
    jax.effects_barrier()
    metered = counting.take().get(Purpose.TRAINING, Carried())
    return Played(carried, metered, len(told))


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


def _begin(algorithm, view, params, key):
    """Returns the federation's state, the replica and a client's state before the first round."""
    state = engine.init(algorithm, params)
    replica = engine.broadcast(algorithm, state)
    return state, replica, call(algorithm, "client.init", view, replica, key)


def _visit(algorithm, view, replica, local, data, ctx):
    """Returns a client's value as it is decoded with its weight, its next state and its counts."""
    visit = view, replica, local, data, ctx
    upload, local, metrics = call(algorithm, "client.update", *visit)
    link = call(algorithm, "uplink.init", upload.value)
    message, _ = call(algorithm, "uplink.encode", upload.value, replica, link, ctx)
    value = call(algorithm, "uplink.decode", message, upload.value)
    return (value, upload.weight), local, sums_of(metrics)


def _close(algorithm, view, state, replica, values, weights):
    """Returns the federation's state and the next replica; values and weights `[clients, ...]`."""
    del view
    like = jax.tree.map(lambda x: x[0], values)
    total = engine.init_total(algorithm, like, len(weights))
    total = engine.add(algorithm, total, values, weights, replica=replica)
    state = engine.serve(algorithm, engine.finish(algorithm, total), state)
    return state, engine.broadcast(algorithm, state)


def _context(client_id: int, round: int) -> Context:
    key = jax.random.fold_in(jax.random.key(client_id), round)
    return Context(key, jnp.int32(round), jnp.int32(client_id))


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
