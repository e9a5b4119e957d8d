"""Scores of a run: before, during and after training."""

from collections.abc import Iterator
from typing import Any

import jax

import fedjax_post
from fedjax_post.core.engine import State
from fedjax_post.evaluate.heldout import HeldOut, choose_rows
from fedjax_post.evaluate.scores import Scores, mean_scores, score
from fedjax_post.provider.hosted import Hosted
from fedjax_post.simulate import stopping
from fedjax_post.simulate.personal import read_clients
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import private, secure
from fedjax_post.study.build import Parts


def score_state(parts: Parts, state: State, heldout: HeldOut, *, rounds: int) -> Scores:
    """Returns the scores of what the federation would deploy in a state.

    Args:
      parts: of the run.
      state: of the federation.
      heldout: rows to score on.
      rounds: number of rounds done, under which a hosted model's calls are journalled.
    """
    model: Any
    model, params = fedjax_post.deployed(parts.algorithm, parts.model, state)
    if not isinstance(model, Hosted):
        return score(model, params, heldout)
    asked: Any = model.at(rounds, -1)
    with stopping.defer_signals():  # an interrupted call may have been paid for
        return score(asked, params, heldout)


def final(parts: Parts, state: State) -> dict[str, Scores]:
    """Returns the scores after the last round: "final", and "personal" if requested."""
    if parts.spec.method.baseline == "local":
        return {"final": score_personal(parts, state)}
    rounds = parts.spec.training.rounds
    scores = {"final": score_state(parts, state, parts.heldout, rounds=rounds)}
    if parts.spec.scoring.personal:
        scores["personal"] = score_own_tasks(parts, state)
    return scores


def callbacks(parts: Parts) -> list[Callback]:
    """Returns the callbacks that add privacy, sums and the learning curve to the records."""
    spec, found = parts.spec, []
    if parts.promised is not None:
        found.append(private.curve(parts.promised, spec))
    if parts.agreed is not None:
        found.append(secure.watch(parts.agreed))
    if spec.scoring.every and spec.method.baseline != "local":
        found.append(curve(parts))
    return found


def score_personal(parts: Parts, state: State) -> Scores:
    """Returns the mean scores of personal models, each on all held-out rows."""
    return mean_scores([scores for _, scores in _each_client(parts, state)])


def score_own_tasks(parts: Parts, state: State) -> Scores:
    """Returns the mean scores of personal models, each on the tasks of its client.

    If rows have no label, every client's task is all held-out rows.
    """
    found = []
    for client_id, scores in _each_client(parts, state):
        tasks = scores.pop("per_task", {})
        own = [tasks[name] for name in _labels_of(parts, client_id) if name in tasks]
        found.append(mean_scores(own) if own else scores)
    return mean_scores(found)


def _labels_of(parts: Parts, client_id: int) -> list[str]:
    """Returns the sorted labels of a client's rows."""
    clients = getattr(parts.data.clients, "clients", parts.data.clients)
    label = clients.table.label
    if label is None:
        return []
    offsets, indices = clients.partition
    return sorted({str(label[i]) for i in indices[offsets[client_id] : offsets[client_id + 1]]})


def _each_client(parts: Parts, state: State) -> Iterator[tuple[int, Scores]]:
    """Returns an iterator over some clients' ids and the scores of their personal models."""
    personal = read_clients(
        parts.plan.directory or "",
        parts.algorithm,
        parts.model,
        parts.data.clients,
        params=parts.params,
        limit=parts.spec.scoring.clients,
    )
    for i, client_id in enumerate(personal.client_ids.tolist()):
        client = jax.tree.map(lambda leaf, i=i: leaf[i], personal.states)
        deployed = fedjax_post.deployed(parts.algorithm, parts.model, state, client)
        yield client_id, score(*deployed, parts.heldout)


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
