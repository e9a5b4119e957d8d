"""A federation drawn from a population of any size: rounds on request, and its peak memory.

    python -m experiments.benchmark.sides.population <clients> <algorithm>

Clients share one table of rows; each holds one row of it, so that a population costs only its
partition. The work of a round does not depend on the population.
"""

import resource
import sys
import tempfile
from itertools import islice

import jax
import numpy as np
import optax

import fedjax_post
from fedjax_post import data
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg, scaffold
from fedjax_post.experiments.benchmark.lm_job import Job, random_table
from fedjax_post.experiments.benchmark.sides import channel
from fedjax_post.hub.load import load_model
from fedjax_post.objectives.sft import sft_loss

_COHORT = 8


def main(population: str, algorithm: str) -> None:
    """Runs as many rounds as each request asks for; answers with the peak of resident memory."""
    out = channel.open_channel()
    # compiling is the peak of a small run, so that either both sides compile or neither
    jax.config.update("jax_enable_compilation_cache", False)
    clients = make_clients(int(population))
    model, params = add_lora(load_model("builtin"), jax.random.key(0), rank=8, alpha=16)
    if algorithm == "scaffold":
        made = scaffold(sft_loss, 1e-3, participation=_COHORT / len(clients))
    else:
        made = fed_avg(sft_loss, optax.adam(1e-3))
    with tempfile.TemporaryDirectory() as directory:
        plan = fedjax_post.Plan(sampler=fedjax_post.uniform(_COHORT), directory=directory)
        rounds = fedjax_post.run(made, model, clients, params=params, rounds=1_000_000, plan=plan)

        def play(request):
            for state, _ in islice(rounds, request["rounds"]):
                jax.block_until_ready(state)
            # kilobytes, but bytes on macOS
            unit = 1 if sys.platform == "darwin" else 1024
            return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

        channel.serve(out, play)


def make_clients(population: int) -> data.TokenClients:
    """Returns so many clients; each holds one row of a table."""
    table = random_table(Job("builtin", length=32, num_clients=250), vocab_size=715)
    offsets = np.arange(population + 1, dtype=np.int64)
    rows = np.arange(population, dtype=np.int64) % len(table.length)
    return data.TokenClients(table, data.Partition(offsets, rows), batch_size=2, local_steps=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
