"""Faults that can hurt whoever holds the weights: memory, terms, a withdrawal.

See `fedjax_post.study.autonomy` for their definitions. What a fault costs is found by running: who
is shut out follows from the memory that the method's own program takes, from the words of a
licence, and from who has taken part before.
"""

import numpy as np

from fedjax_post.core.wire import num_bytes
from fedjax_post.openness import licences
from fedjax_post.report.table import format_bytes
from fedjax_post.simulate.memory import visit_memory
from fedjax_post.study import autonomy
from fedjax_post.study.autonomy import Row
from fedjax_post.study.faults import (
    Played,
    Stage,
    choose_clients,
    drawn_in,
    play,
    row_of,
    rows_without,
    score_own,
    score_state,
    trains_alone,
)
from fedjax_post.study.version_faults import NO_WEIGHTS

_PLACE = "European Union"
_NO_MODEL = "clients hold no model"


def drill_memory(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of clients whose memory is below what a visit of the method takes.

    The need is that of the compiled visit of one client. Methods that ask a host need no memory
    for a model; a stand-in or a proxy counts as what it takes.
    """
    if not trains_alone(stage):
        return [row_of(stage, name, stage.base, _NO_MODEL, by_definition=True)]
    parts, settings = stage.parts, stage.settings
    use = visit_memory(
        parts.algorithm, parts.model, parts.data.clients, params=parts.params, chunk_size=1
    )
    memory = autonomy.client_memory(
        len(parts.data.clients),
        size=num_bytes(parts.target.variables),
        least=settings.least_memory,
        most=settings.most_memory,
        seed=stage.spec.seed,
    )
    why = f"their memory is below the {format_bytes(use.total)} that a visit takes"
    clients = np.flatnonzero(memory < use.total)
    return rows_without(stage, name, played, clients=clients, why=why)


def drill_weights_licence(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of clients whom the terms of open weights bar, as if the base had them.

    Those who are barred are the clients of one region, see `autonomy.choose_excluded`.
    """
    if not autonomy.serves_alone(stage.parts.algorithm.access):
        return [row_of(stage, name, stage.base, NO_WEIGHTS, by_definition=True)]
    licence = stage.settings.weights_licence
    barred = licences.bars(licence, _PLACE)
    clients = choose_clients(stage, "excluded_region") if barred else np.zeros(0, np.int64)
    why = f"as if the base were under the {licence}, which {'' if barred else 'does not '}"
    why += f"bar{'s' if barred else ''} clients in the {_PLACE}"
    return rows_without(stage, name, played, clients=clients, why=why)


def drill_withdrawn(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a checkpoint that is withdrawn from its hub at some round.

    Whoever has taken part before holds a copy and continues. Nobody else can join.
    """
    if not autonomy.serves_alone(stage.parts.algorithm.access):
        return [row_of(stage, name, stage.base, NO_WEIGHTS, by_definition=True)]
    before = stage.settings.at_round or 0
    clients = np.setdiff1d(np.arange(len(stage.parts.data.clients)), drawn_in(stage, range(before)))
    why = f"they had not taken part before round {before}, and hold no copy of the base"
    return rows_without(stage, name, played, clients=clients, after="fault", why=why)


def drill_forgotten(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the row of unlearning a client exactly: all is trained again without it.

    `extra` has the score on the client's own rows before and after.
    """
    clients = np.array([stage.settings.refused_client])
    sampler = autonomy.without(stage.parts.plan.sampler, clients.tolist())
    again = play(stage, name, sampler=sampler)
    own = [score_own(stage, s, clients) for s in (played, again)]
    note = (
        f"trained again without client {clients[0]}: {100 * own[0]:.1f} % of its own rows were "
        f"right, and {100 * own[1]:.1f} % are"
    )
    found = row_of(
        stage, name, score_state(stage, again), note, own_before=own[0], own_after=own[1]
    )
    return [found]
