"""Scores of clients' personal models, several at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_post
from fedjax_post.core.engine import State
from fedjax_post.evaluate.clients import measure_each, num_lanes
from fedjax_post.evaluate.scores import Outcomes
from fedjax_post.evaluate.stacked import Stacked
from fedjax_post.provider.hosted import Hosted
from fedjax_post.simulate.personal import Opened, evenly, open_clients
from fedjax_post.simulate.run import chunk_size_of
from fedjax_post.study import client_rows, metered
from fedjax_post.study.build import Parts

_USUAL = 8  # clients whose models are scored by default


class Personal(NamedTuple):
    """The outcomes of some clients' personal models."""

    kind: str  # of the clients' own rows, see `client_rows`
    client_ids: np.ndarray  # [n], int64
    own: list[np.ndarray]  # places of each client's own rows among the held-out rows
    outcomes: list[Outcomes]  # of its own rows, or of all held-out rows


def measure_personal(parts: Parts, state: State, *, everywhere: bool) -> Personal:
    """Returns the outcomes of personal models of clients that took part in a run.

    They are those of `scoring.clients` clients, spread evenly over all that took part and have
    rows to be scored.

    Args:
      parts: of the run.
      state: after the last round.
      everywhere: whether all held-out rows are scored, not only a client's own.
    """
    with open_clients(
        parts.plan.directory or "",
        parts.algorithm,
        parts.model,
        parts.data.clients,
        params=parts.params,
    ) as opened:
        kind, client_ids, own = _choose(parts, opened.client_ids)
        all_places = np.arange(len(parts.heldout.rows))
        scored = [all_places] * len(own) if everywhere else own
        rows = [parts.heldout.rows[places] for places in scored]
        counts = metered.note_fn(parts, 0) is not None or _is_hosted(parts, state, opened)
        measure_fn = _one_by_one if counts else _side_by_side
        return Personal(kind, client_ids, own, measure_fn(parts, state, opened, client_ids, rows))


def most_scored(parts: Parts) -> int:
    """Returns the largest number of clients whose models are scored."""
    limit = parts.spec.scoring.clients
    population = len(parts.data.clients)
    return min(_USUAL if limit is None else limit or population, population)


def _choose(parts: Parts, seen: np.ndarray) -> tuple[str, np.ndarray, list[np.ndarray]]:
    """Returns the kind of the clients' own rows, the chosen clients and their places."""
    limit = most_scored(parts)
    kind = client_rows.kind_of(parts.data)
    if kind != "training":
        places = client_rows.places_of(parts.data, parts.heldout, seen)
        chosen = evenly(np.flatnonzero([len(own) for own in places]), limit)
        if len(chosen):
            return kind, seen[chosen], [places[i] for i in chosen.tolist()]
    chosen = evenly(seen, limit)
    return "all", chosen, [np.arange(len(parts.heldout.rows))] * len(chosen)


def _is_hosted(parts: Parts, state: State, opened: Opened) -> bool:
    client = jax.tree.map(lambda x: x[0], opened.read(opened.client_ids[:1]))
    return isinstance(_deploy(parts)((parts.model, state), client)[0], Hosted)


def _side_by_side(parts: Parts, state: State, opened: Opened, client_ids, rows) -> list[Outcomes]:
    """Returns the outcomes of each client's model, computed for several clients at a time."""
    heldout, num_clients = parts.heldout, len(parts.data.clients)
    chunk = chunk_size_of(parts.plan, num_clients, parts.spec.training.rounds)
    sizes = [len(own) for own in rows]
    lanes = num_lanes(sizes, batch_size=heldout.batch_size, at_most=chunk)
    order = np.argsort(sizes, kind="stable")  # parts of similar clients
    models = Stacked(_deploy(parts), (parts.model, state), None)
    found: list[Any] = [None] * len(rows)
    for start in range(0, len(order), lanes):
        part = order[start : start + lanes]
        padded = np.resize(part, lanes)  # one shape is compiled
        states = opened.read(client_ids[padded])
        own = [rows[i] for i in part.tolist()] + [rows[0][:0]] * (lanes - len(part))
        outcomes = measure_each(models._replace(states=states), heldout, own)
        for i, one in zip(part.tolist(), outcomes, strict=False):
            found[i] = one
    return found


def _one_by_one(parts: Parts, state: State, opened: Opened, client_ids, rows) -> list[Outcomes]:
    """Returns the outcomes where calls are counted, or go to a provider, one at a time."""
    deploy, found, rounds = _deploy(parts), [], parts.spec.training.rounds
    for client_id, own in zip(client_ids.tolist(), rows, strict=True):
        client = jax.tree.map(lambda x: x[0], opened.read(np.array([client_id])))
        made, scored = deploy((parts.model, state), client), parts.heldout._replace(rows=own)
        note_fn = metered.note_fn(parts, rounds)
        found.append(metered.measure_at(made, scored, rounds=rounds, note_fn=note_fn))
    return found


def _deploy(parts: Parts) -> Callable:
    """Returns the function ((models, state), state of a client) -> (model, params)."""

    def deploy(shared, client):
        model, state = shared
        return fedjax_post.deployed(parts.algorithm, model, state, client)

    return deploy
