"""Faults of the host of a target, each put into a run whose result is scored.

See `fedjax_post.study.autonomy` for their definitions, `study.version_faults` for another version
of the model, `study.service_faults` for a host that withdraws what it has trained,
`study.held_faults` for those that can hurt whoever holds the weights, and `study.drills` for how
they are run. All drills of a method share the state at which faults begin, and one set of compiled
programs. Each run has a folder and, at a provider, a journal of its own: runs with and without a
fault ask different questions under the same round and client.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fedjax_post
from fedjax_post.core.engine import State
from fedjax_post.disclosure.ledger import is_tuned_by_host
from fedjax_post.evaluate.heldout import HeldOut, choose_rows
from fedjax_post.evaluate.scores import score, scores_of
from fedjax_post.hub import artefact
from fedjax_post.simulate.cohort import draw
from fedjax_post.study import autonomy, folder, hosting, licence, metered
from fedjax_post.study.autonomy import Row
from fedjax_post.study.build import Parts, build
from fedjax_post.study.spec import Spec

LLAMA_4 = "Llama 4 Community License Agreement"
_FAULTS = ("cohorts", "model")  # entries of a run's identity that a fault changes


class Settings(NamedTuple):
    """When faults begin and how severe they are."""

    at_round: int | None = None  # round at which faults begin; None: half of the rounds
    rate_limit: int = 1  # clients that are answered in a round
    refused_client: int = 0  # id of the client that is refused
    excluded_clients: int | None = None  # number of clients; None: a quarter
    change: float = 0.1  # noise on another version's weights, in deviations of each matrix
    next_version: str = ""  # base model of the same shapes that is the other version; "": noise
    least_memory: float = 2.0  # of a client, in sizes of the target's weights
    most_memory: float = 32.0  # the same; clients lie between them, evenly in its logarithm
    weights_licence: str = LLAMA_4  # terms under which the weights are taken to be
    own_examples: int = 96  # rows of excluded clients that are scored; 0: all
    passport: str = ""  # of the base model; "": found by the model's name
    data_licence: str = "unknown"  # licence of the clients' data
    measure: str = "exact_match"  # by which score losses are told


class Stage(NamedTuple):
    """A method prepared for its drills, with programs that are compiled once for all of them."""

    parts: Parts
    spec: Spec
    method: str
    directory: Path
    settings: Settings
    base: float  # score at the end of the run without a fault, by `settings.measure`
    ask_again: bool = False  # repeat calls to a provider that may have been paid for already


class Played(NamedTuple):
    """A run that has ended."""

    state: State
    model: Any  # of the run; calls to a hosted one are in the journal of the run's folder
    rounds: int  # number of rounds done


def drill_shutdown(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that answers nothing from some round on."""
    if autonomy.serves_alone(stage.parts.algorithm.access):
        return [unchanged_row(stage, name)]
    if trains_alone(stage):
        note = "training continues without the host, for a model that nobody serves"
        return [row_of(stage, name, 0.0, note, can=(True, False))]
    stopped = play(stage, name, after="fault", sampler=autonomy.nobody())
    reached = score_state(stage, stopped)  # with the model that is no longer available
    note = f"training ended at {100 * reached:.1f} %, and the model no longer answers"
    return [row_of(stage, name, 0.0, note, can=(False, False), at_fault=reached)]


def drill_rate_limited(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that answers a few clients a round."""
    if trains_alone(stage):
        return [unchanged_row(stage, name)]
    if has_uploaded(stage):
        return [uploaded_row(stage, name)]
    count = stage.settings.rate_limit
    sampler = autonomy.at_most(stage.parts.plan.sampler, count)
    after = score_state(stage, play(stage, name, after="fault", sampler=sampler))
    return [row_of(stage, name, after, f"{count} clients per round were answered")]


def drill_refused(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that refuses one client from some round on."""
    if has_uploaded(stage):
        return [uploaded_row(stage, name)]
    client = np.array([stage.settings.refused_client])
    return leave_out(stage, name, played, clients=client, after="fault")


def drill_excluded(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that never answers some clients."""
    return leave_out(stage, name, played, clients=choose_clients(stage, name))


def choose_clients(stage: Stage, reason: str) -> np.ndarray:
    """Returns the ids of the clients that are excluded for a reason of `autonomy.EXCLUSIONS`."""
    table, partition = table_and_partition(stage.parts)
    names = np.zeros(len(table.length), np.int64)
    if table.label is not None:
        names = np.unique(table.label, return_inverse=True)[1]
    sizes = np.diff(partition.offsets)
    counts = np.zeros((len(sizes), names.max() + 1))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    np.add.at(counts, (owner, names[partition.indices]), 1)
    return autonomy.choose_excluded(
        reason,
        counts=counts,
        tokens=np.bincount(owner, table.length[partition.indices], len(sizes)),
        num=num_excluded(stage.settings, stage.parts),
        seed=stage.spec.seed,
    )


def num_excluded(settings: Settings, parts: Parts) -> int:
    """Returns the number of clients that are excluded."""
    return settings.excluded_clients or max(1, len(parts.data.clients) // 4)


def leave_out(
    stage: Stage, name: str, played: Played, *, clients: np.ndarray, after: str | None = None
) -> list[Row]:
    """Returns the rows of clients whom a host does not answer, as `rows_without` does."""
    if not trains_alone(stage):
        return rows_without(stage, name, played, clients=clients, after=after)
    before = score_own(stage, played, clients)
    own = unchanged_row(stage, f"{name}{autonomy.SHUT_OUT}")._replace(before=before, after=before)
    if not autonomy.serves_alone(stage.parts.algorithm.access):  # the owner serves nobody else
        note = "they train on the stand-in, for a model that does not serve them"
        own = own._replace(after=0.0, can_serve=False, note=note)
    return [unchanged_row(stage, name), own]


def rows_without(
    stage: Stage,
    name: str,
    played: Played,
    *,
    clients: np.ndarray,
    after: str | None = None,
    why: str = "",
) -> list[Row]:
    """Returns two rows: the model trained without some clients, and its score on their own rows.

    Args:
      stage: the method.
      name: of the drill.
      played: the run without a fault.
      clients: ids of those who are shut out; the run is the same if there are none.
      after: folder of the run to continue without them; None to start from the first round.
      why: why they are shut out, for the note.
    """
    reason = f": {why}" if why else ""
    who = f"{len(clients)} of {len(stage.parts.data.clients)} clients"
    if not clients.size:
        note = f"nobody is shut out{reason}"
        return [row_of(stage, name, stage.base, note, by_definition=True)]
    before = score_own(stage, played, clients)
    sampler = autonomy.without(stage.parts.plan.sampler, clients.tolist())
    without = play(stage, name, after=after, sampler=sampler)
    worth = score_own(stage, without, clients)
    note = f"on their own rows, if they had access; {who} can neither train nor be served"
    extra = {"clients": clients.tolist()}
    can = len(clients) < len(stage.parts.data.clients), True
    reached = score_state(stage, without)
    row = row_of(stage, name, reached, f"without {who}{reason}", can=can, **extra)
    theirs = f"{name}{autonomy.SHUT_OUT}"
    own = row_of(stage, theirs, worth, note, can=(False, False), **extra)
    return [row, own._replace(before=before)]


def drill_artefact(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of what was made, read back without the host."""
    made = fedjax_post.deployed(stage.parts.algorithm, played.model, played.state)
    path = stage.directory / name
    holds_weights = artefact.write(path, *made, base=stage.spec.model.name)
    terms = licence.terms(
        stage.spec.model.name,
        passport=stage.settings.passport,
        holds_weights=holds_weights,
        data_licence=stage.settings.data_licence,
    )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    extra = {"artefact_bytes": size, "terms": terms}
    if not autonomy.serves_alone(stage.parts.algorithm.access):
        note = "it was read back, but the model that it needs is not available"
        return [row_of(stage, name, 0.0, note, can=(trains_alone(stage), False), **extra)]
    base = stage.spec.model
    model, params = artefact.read(path, base=base.name, dtype=base.dtype, quantize=base.quantize)
    after = score(model, params, stage.parts.heldout)[stage.settings.measure]
    note = "read back from files, without a provider"
    return [row_of(stage, name, after, note, by_definition=True, **extra)]


def play(
    stage: Stage,
    name: str,
    *,
    rounds: int | None = None,
    after: str | None = None,
    sampler: Any = None,
    model: Any = None,
) -> Played:
    """Runs in a folder of its own, and returns how it has ended.

    Args:
      stage: the method.
      name: of the folder.
      rounds: number of rounds; None for all of the experiment.
      after: folder of the run to continue, with its journal; None to start from the first round.
      sampler: in place of the experiment's.
      model: in place of the experiment's.
    """
    parts, where = stage.parts, stage.directory / name
    rounds = rounds or stage.spec.training.rounds
    if after is not None and not where.exists():
        folder.write_whole(where, lambda path: shutil.copytree(stage.directory / after, path))
    model = model_of(stage, where) if model is None else model
    plan = parts.plan._replace(directory=where, sampler=sampler or parts.plan.sampler)
    identity = {name: value for name, value in plan.identity.items() if name not in _FAULTS}
    plan = plan._replace(identity=identity, may_differ=() if after is None else _FAULTS)
    for _ in fedjax_post.run(
        parts.algorithm,
        model,
        parts.data.clients,
        params=parts.params,
        rounds=rounds,
        plan=plan,
    ):
        pass
    found = fedjax_post.restore(where, parts.algorithm, parts.params)
    assert found is not None  # the run in this folder has just been finished
    return Played(found.state, model, rounds)


def model_of(stage: Stage, where: Path, *, spec: Spec | None = None) -> Any:
    """Returns the models of a run, or of `spec`; calls to a hosted one are kept in `where`."""
    spec, parts = spec or stage.spec, stage.parts
    if not hosting.is_hosted(spec):
        return parts.model if spec is stage.spec else build(spec).model
    return hosting.model_of(
        spec, parts.tokenizer, directory=where, meter=parts.meter, ask_again=stage.ask_again
    )


def score_state(stage: Stage, played: Played, *, model: Any = None) -> float:
    """Returns the score of a run's end on held-out rows, in [0, 1]; `model` replaces its own."""
    played = played if model is None else played._replace(model=model)
    return _score(stage, played, stage.parts.heldout)


def score_own(stage: Stage, played: Played, clients: np.ndarray) -> float:
    """Returns the score of a run's end on some clients' own training rows, in [0, 1]."""
    table, (offsets, indices) = table_and_partition(stage.parts)
    rows = np.concatenate([indices[offsets[i] : offsets[i + 1]] for i in clients])
    chosen = choose_rows(len(rows), stage.settings.own_examples, seed=stage.spec.seed)
    return _score(stage, played, stage.parts.heldout._replace(table=table, rows=rows[chosen]))


def _score(stage: Stage, played: Played, heldout: HeldOut) -> float:
    made = fedjax_post.deployed(stage.parts.algorithm, played.model, played.state)
    outcomes = metered.measure_at(made, heldout, rounds=played.rounds)
    return scores_of(outcomes, heldout)[stage.settings.measure]


def table_and_partition(parts: Parts):
    """Returns the clients' table and partition."""
    clients = getattr(parts.data.clients, "clients", parts.data.clients)
    return clients.table, clients.partition


def row_of(stage: Stage, name: str, after: float, note: str, *, can=(True, True), **extra) -> Row:
    """Returns a row; a loss that follows from what cannot be done is so by definition."""
    extra = {"by_definition": False in can, "rounds": stage.spec.training.rounds} | extra
    return Row(name, stage.method, stage.base, after, can[0], can[1], note, extra)


def unchanged_row(stage: Stage, name: str) -> Row:
    """Returns the row of a method whose run is the same with and without a fault."""
    note = "it queries no host: the run is the same with and without the fault"
    return row_of(stage, name, stage.base, note, by_definition=True)


def has_uploaded(stage: Stage) -> bool:
    """Returns whether clients have sent all that a host trains on before a fault begins."""
    if not is_tuned_by_host(stage.parts.algorithm.access):
        return False
    at_round, rounds = stage.settings.at_round or 0, stage.spec.training.rounds
    before, later = (drawn_in(stage, r) for r in (range(at_round), range(at_round, rounds)))
    return set(later) <= set(before)


def drawn_in(stage: Stage, rounds: range) -> np.ndarray:
    """Returns the ids of the clients that are drawn in some rounds, ascending."""
    plan, population = stage.parts.plan, len(stage.parts.data.clients)
    drawn = [draw(plan.sampler, population, seed=plan.seed, round=r) for r in rounds]
    return np.unique(np.concatenate([np.zeros(0, int), *drawn]))


def uploaded_row(stage: Stage, name: str) -> Row:
    """Returns the row of a fault that comes after the last upload."""
    note = "all rows were uploaded before: the run is the same with and without the fault"
    return row_of(stage, name, stage.base, note, by_definition=True)


def trains_alone(stage: Stage) -> bool:
    """Returns whether the method trains without the host of the target."""
    return autonomy.trains_alone(stage.parts.algorithm.access)


def fill_settings(settings: Settings, rounds: int) -> Settings:
    """Returns the settings with `at_round` filled in.

    Raises:
      ValueError: if faults would begin before round 1 or after the last round, or the run has one
        round alone.
    """
    if rounds < 2:
        raise ValueError(
            f"training.rounds={rounds} leaves no round at which a fault could begin; give at "
            "least 2"
        )
    at_round = settings.at_round or rounds // 2
    if not 1 <= at_round < rounds:
        raise ValueError(
            f"at_round={at_round} must be from 1 to {rounds - 1}, before the last of "
            f"`training.rounds={rounds}`"
        )
    return settings._replace(at_round=at_round)
