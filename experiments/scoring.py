"""Scores of a run: before it, along its way and at its end."""

from collections.abc import Iterator

import jax
from absl import flags

import fedjax_post
from experiments.build import Job
from fedjax_post.core.engine import State
from fedjax_post.evaluate.scores import HeldOut, Scores, choose_rows, mean_scores, score
from fedjax_post.provider.hosted import Hosted
from fedjax_post.simulate.personal import read_clients
from fedjax_post.simulate.record import Callback, Record


def score_state(job: Job, state: State, heldout: HeldOut, *, rounds: int) -> Scores:
    """Returns the scores of what the federation would deploy after so many rounds."""
    model, params = fedjax_post.deployed(job.algorithm, job.model, state)
    if isinstance(model, Hosted):
        model = model.at(rounds, -1)
    return score(model, params, heldout)


def score_personal(job: Job, options: flags.FlagValues, state: State) -> Scores:
    """Returns the mean scores of clients' own models, all on the common held-out rows."""
    return mean_scores([scores for _, scores in _each_client(job, options, state)])


def score_own_tasks(job: Job, options: flags.FlagValues, state: State) -> Scores:
    """Returns the mean scores of clients' own models, each on the tasks that its client holds.

    Where rows have no label, all held-out rows are everybody's task.
    """
    found = []
    for client_id, scores in _each_client(job, options, state):
        tasks = scores.pop("per_task", {})
        own = [tasks[name] for name in _labels_of(job, client_id) if name in tasks]
        found.append(mean_scores(own) if own else scores)
    return mean_scores(found)


def _labels_of(job: Job, client_id: int) -> list[str]:
    """The labels that a client's rows have."""
    clients = getattr(job.data.clients, "clients", job.data.clients)
    label = clients.table.label
    if label is None:
        return []
    offsets, indices = clients.partition
    return sorted({str(label[i]) for i in indices[offsets[client_id] : offsets[client_id + 1]]})


def _each_client(job: Job, options: flags.FlagValues, state: State) -> Iterator[tuple[int, Scores]]:
    """Some clients and the scores of what each would serve now."""
    personal = read_clients(
        job.plan.directory,
        job.algorithm,
        job.model,
        job.data.clients,
        params=job.params,
        limit=options.eval_clients,
    )
    for i, client_id in enumerate(personal.client_ids.tolist()):
        client = jax.tree.map(lambda leaf, i=i: leaf[i], personal.states)
        deployed = fedjax_post.deployed(job.algorithm, job.model, state, client)
        yield client_id, score(*deployed, job.heldout)


def curve(job: Job, options: flags.FlagValues) -> Callback:
    """Returns a callback that adds `eval_loss` and `eval_exact_match` to some records.

    They are of `--curve_examples` of the held-out rows, every `--eval_every` rounds.
    """
    chosen = choose_rows(len(job.heldout.rows), options.curve_examples, seed=options.seed)
    heldout = job.heldout._replace(rows=job.heldout.rows[chosen])

    def callback(state: State, record: Record) -> Record | None:
        if (record["round"] + 1) % options.eval_every:
            return None
        scores = score_state(job, state, heldout, rounds=record["round"] + 1)
        return {f"eval_{name}": value for name, value in scores.items() if name != "per_task"}

    return callback
