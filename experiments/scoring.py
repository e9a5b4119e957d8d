"""Scores of a run: before it, along its way and at its end."""

import jax
from absl import flags

import fedjax_post
from experiments.build import Job
from fedjax_post.core.engine import State
from fedjax_post.evaluate.scores import HeldOut, Scores, choose_rows, mean_scores, score
from fedjax_post.simulate.personal import read_clients
from fedjax_post.simulate.record import Callback, Record


def score_state(job: Job, state: State, heldout: HeldOut) -> Scores:
    """Returns the scores of what the federation would deploy."""
    return score(*fedjax_post.deployed(job.algorithm, job.model, state), heldout)


def score_personal(job: Job, options: flags.FlagValues) -> Scores:
    """Returns the mean scores of clients' own models, all on the common held-out rows."""
    personal = read_clients(
        job.plan.directory,
        job.algorithm,
        job.model,
        job.data.clients,
        params=job.params,
        limit=options.eval_clients,
    )
    scores = []
    for i in range(len(personal.client_ids)):
        client = jax.tree.map(lambda leaf, i=i: leaf[i], personal.states)
        deployed = fedjax_post.deployed(job.algorithm, job.model, job.start, client)
        scores.append(score(*deployed, job.heldout))
    return mean_scores(scores)


def curve(job: Job, options: flags.FlagValues) -> Callback:
    """Returns a callback that adds `eval_loss` and `eval_exact_match` to some records.

    They are of `--curve_examples` of the held-out rows, every `--eval_every` rounds.
    """
    chosen = choose_rows(len(job.heldout.rows), options.curve_examples, seed=options.seed)
    heldout = job.heldout._replace(rows=job.heldout.rows[chosen])

    def callback(state: State, record: Record) -> Record | None:
        if (record["round"] + 1) % options.eval_every:
            return None
        scores = score_state(job, state, heldout)
        return {f"eval_{name}": value for name, value in scores.items() if name != "per_task"}

    return callback
