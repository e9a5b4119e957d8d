"""Tables of scores by client, of a shared model and of personal models."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_post.data.load import Loaded
from fedjax_post.evaluate.clients import ClientTable, Line
from fedjax_post.evaluate.heldout import HeldOut, choose_rows
from fedjax_post.evaluate.scores import Outcomes, Scores, counted_by, scores_of, summarize
from fedjax_post.study import client_rows
from fedjax_post.study.spec import Spec


class ByClient(NamedTuple):
    """Scores of a shared model by client."""

    tables: dict[str, ClientTable]  # "shared", of clients that train, and "heldout"
    apart: Scores | None  # over all scored rows of held-out clients; None if there are none


def tables_of(
    data: Loaded,
    heldout: HeldOut,
    outcomes: Outcomes,
    *,
    measure_fn: Callable[[HeldOut], Outcomes],
    spec: Spec,
) -> ByClient:
    """Returns the scores of a shared model by client.

    Rows that clients train on are scored only if `scoring.clients` is given, since their scores
    do not come with those of the held-out rows.

    Args:
      data: the clients and their rows.
      heldout: rows that were scored.
      outcomes: of these rows.
      measure_fn: scores further rows.
      spec: the experiment.
    """
    tables, limit, seed = {}, spec.scoring.clients, spec.seed
    client_ids = choose_rows(len(data.clients), limit or 0, seed=seed)
    kind = client_rows.kind_of(data)
    if kind != "training":
        places = client_rows.places_of(data, heldout, client_ids)
        tables["shared"] = table_of(kind, outcomes, places, data, client_ids)
    elif limit is not None:
        rows, places = client_rows.training_rows(
            data, heldout, client_ids, limit=spec.scoring.examples, seed=seed
        )
        tables["shared"] = table_of(kind, measure_fn(rows), places, data, client_ids)
    apart = client_rows.rows_apart(data, heldout, seed=seed)
    if apart is None:
        return ByClient(tables, None)
    theirs = measure_fn(apart[0])
    tables["heldout"] = table_of("heldout_client", theirs, apart[1], data)
    return ByClient(tables, scores_of(theirs, apart[0]))


def table_of(
    kind: str,
    outcomes: Outcomes,
    places: list[np.ndarray],
    data: Loaded,
    client_ids: np.ndarray | None = None,
) -> ClientTable:
    """Returns the table of some clients.

    Args:
      kind: of the rows, one of `evaluate.clients.ROWS`.
      outcomes: of rows of all these clients.
      places: of each client's rows in the outcomes.
      data: gives the clients' names.
      client_ids: `[n]` int, of clients that train; None for all held-out clients.
    """
    lines = []
    for number, own in enumerate(places):
        client_id = None if client_ids is None else int(client_ids[number])
        if len(own):
            name = _name(data, number, client_id)
            given = summarize(outcomes, own), counted_by(outcomes, own)
            lines.append(Line(name, client_id, len(own), *given))
    return ClientTable(kind, len(places), tuple(lines))


def join(tables: list[ClientTable]) -> ClientTable:
    """Returns one table of clients that were scored with different models on rows of one kind."""
    lines = tuple(line for table in tables for line in table.lines)
    return ClientTable(tables[0].rows, sum(table.num_clients for table in tables), lines)


def _name(data: Loaded, number: int, client_id: int | None) -> str:
    if client_id is None:
        assert data.apart is not None  # held-out clients have lines
        return data.apart.names[number]
    return str(data.names[client_id]) if data.names else str(client_id)
