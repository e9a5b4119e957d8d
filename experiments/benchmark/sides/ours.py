"""Our side of a fine-tuning job: rounds of `fedjax_post.run`, with records and checkpoints.

python -m experiments.benchmark.sides.ours <folder of the job> [cores] [heap]

With the heap "plain" the C library returns freed memory to the system, as in a notebook.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import optax

import fedjax_post
from fedjax_post.algorithms import fed_avg
from fedjax_post.experiments import process
from fedjax_post.experiments.benchmark import lm_job
from fedjax_post.experiments.benchmark.sides import channel
from fedjax_post.objectives.sft import sft_loss


def main(folder: str, cores: str = "", heap: str = "kept") -> None:
    """Runs rounds until there are no more requests."""
    channel.pin(cores)
    out = channel.open_channel()
    process.keep_compiled() if heap == "plain" else process.prepare()
    job = lm_job.read_job(Path(folder))
    model, params = lm_job.model_of(job)
    clients, heldout = lm_job.data_of(job, vocab_size=model.config.vocab_size)
    state: Any = None
    with tempfile.TemporaryDirectory() as directory:
        plan = fedjax_post.Plan(
            sampler=lm_job.sampler_of(job), chunk_size=job.chunk_size, directory=directory
        )
        rounds = fedjax_post.run(
            fed_avg(sft_loss, optax.adam(job.learning_rate)),
            model,
            clients,
            params=params,
            rounds=job.rounds,
            plan=plan,
        )

        def play(request):
            nonlocal state
            if request.get("evaluate"):
                batch = jax.tree.map(lambda x: x[0], heldout.batches)
                loss, _ = jax.jit(sft_loss)(state.shared, model, batch, None)
                return {"loss": float(loss)}
            state, record = next(rounds)
            jax.block_until_ready(state)
            names = ("loss", "padding")
            return {"tokens": record["num_read"], **{name: record.get(name) for name in names}}

        channel.serve(out, play)


if __name__ == "__main__":
    main(*sys.argv[1:])
