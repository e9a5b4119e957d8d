"""Scores of a run: before, during and after training."""

from typing import Any, NamedTuple

import numpy as np

import fedjax_post
from fedjax_post.core.engine import State
from fedjax_post.evaluate.clients import ClientTable
from fedjax_post.evaluate.heldout import HeldOut, choose_rows
from fedjax_post.evaluate.scores import Outcomes, Scores, mean_scores, scores_of
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import client_rows, client_tables, metered, private, secure
from fedjax_post.study.build import Parts
from fedjax_post.study.personal_scores import Personal, measure_personal


class Result(NamedTuple):
    """Scores before or after training."""

    scores: dict[str, Scores]  # by name, such as "final"
    tables: dict[str, ClientTable]  # by client: "shared", "personal" and "heldout"
    apart: Scores | None  # of held-out clients; None without them, or without a shared model


def score_state(parts: Parts, state: State, heldout: HeldOut, *, rounds: int) -> Scores:
    """Returns the scores of what the federation would deploy in a state.

    Args:
      parts: of the run.
      state: of the federation.
      heldout: rows to score on.
      rounds: number of rounds done, under which a hosted model's calls are journalled.
    """
    return scores_of(_measure_state(parts, state, heldout, rounds=rounds), heldout)


def before(parts: Parts, start: State) -> Result:
    """Returns the scores before the first round: "base", and "backdoor_base" with a backdoor."""
    base = {"base": score_state(parts, start, parts.heldout, rounds=0)}
    if parts.poisoned is not None and parts.poisoned.heldout is not None:
        base["backdoor_base"] = score_state(parts, start, parts.poisoned.heldout, rounds=0)
    apart = client_rows.rows_apart(parts.data, parts.heldout, seed=parts.spec.seed)
    if apart is None or not parts.has_shared_model:
        return Result(base, {}, None)
    return Result(base, {}, score_state(parts, start, apart[0], rounds=0))


def final(parts: Parts, state: State) -> Result:
    """Returns the scores after the last round: "final", and "personal" if requested.

    With a backdoor, "backdoor" scores prompts with the trigger by whether its target is the answer.
    Without a shared model (baseline local, in-context examples), "final" is the mean over personal
    models, each on all held-out rows.
    """
    if not parts.has_shared_model:
        found = measure_personal(parts, state, everywhere=True)
        means = mean_scores([scores_of(one, parts.heldout) for one in found.outcomes])
        table = _table(parts, found, found.own)
        own = {"personal": _over_clients(table)} if parts.spec.scoring.personal else {}
        return Result({"final": means} | own, {"personal": table}, None)
    rounds = parts.spec.training.rounds
    measure_fn = lambda heldout: _measure_state(parts, state, heldout, rounds=rounds)
    outcomes = measure_fn(parts.heldout)
    tables, apart = client_tables.tables_of(
        parts.data, parts.heldout, outcomes, measure_fn=measure_fn, spec=parts.spec
    )
    scores = {"final": scores_of(outcomes, parts.heldout)}
    if parts.poisoned is not None and parts.poisoned.heldout is not None:
        scores["backdoor"] = score_state(parts, state, parts.poisoned.heldout, rounds=rounds)
    if parts.spec.scoring.personal:
        found = measure_personal(parts, state, everywhere=False)
        tables["personal"] = _table(parts, found, [np.arange(len(own)) for own in found.own])
        scores["personal"] = _over_clients(tables["personal"])
    return Result(scores, tables, apart)


def records_of(result: Result) -> list[dict[str, Any]]:
    """Returns the lines of all tables, as they are written to `clients.jsonl`."""
    return [line for name, table in result.tables.items() for line in table.records(name)]


def callbacks(parts: Parts) -> list[Callback]:
    """Returns the callbacks that add privacy, sums and the learning curve to the records."""
    spec, found = parts.spec, []
    if parts.promised is not None:
        found.append(private.curve(parts.promised, spec))
    if parts.agreed is not None:
        found.append(secure.watch(parts.agreed))
    if spec.scoring.every and parts.has_shared_model:
        found.append(curve(parts))
    return found


def _measure_state(parts: Parts, state: State, heldout: HeldOut, *, rounds: int) -> Outcomes:
    made = fedjax_post.deployed(parts.algorithm, parts.model, state)
    note_fn = metered.note_fn(parts, rounds)
    return metered.measure_at(made, heldout, rounds=rounds, note_fn=note_fn)


def _over_clients(table: ClientTable) -> Scores:
    """Returns the means over clients of their scores."""
    return {name: one["mean_by_clients"] for name, one in table.summary()["scores"].items()}


def _table(parts: Parts, found: Personal, places: list[np.ndarray]) -> ClientTable:
    """Returns the table of personal models; `places` are of the clients' rows in the outcomes."""
    each = zip(found.outcomes, places, found.client_ids, strict=True)
    return client_tables.join(
        [
            client_tables.table_of(found.kind, outcomes, [own], parts.data, np.array([client_id]))
            for outcomes, own, client_id in each
        ]
    )


def curve(parts: Parts) -> Callback:
    """Returns a callback that adds `eval_loss` and `eval_exact_match` to some records.

    They are computed every `scoring.every` rounds from `scoring.curve_examples` held-out rows.
    """
    spec, heldout = parts.spec, parts.heldout
    chosen = choose_rows(len(heldout.rows), spec.scoring.curve_examples, seed=spec.seed)
    heldout = heldout._replace(rows=heldout.rows[chosen])

    def callback(state: State, record: Record) -> Record | None:
        if (record["round"] + 1) % spec.scoring.every:
            return None
        scores = score_state(parts, state, heldout, rounds=record["round"] + 1)
        return {f"eval_{name}": value for name, value in scores.items() if name != "per_task"}

    return callback
