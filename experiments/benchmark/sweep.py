"""The cost of eight federations in one program, against one of them alone."""

import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np
import optax

import fedjax_post
from fedjax_post import data
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg
from fedjax_post.experiments.benchmark.lines import Aim, Figure, losses_agree, ratio
from fedjax_post.experiments.benchmark.settings import Settings
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.simulate.sweep import Grid, sweep

_RUNS = 8


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields the seconds of a round of eight learning rates over those of one, turn by turn."""
    rates = np.geomspace(1e-4, 1e-2, _RUNS).tolist()
    few = data.Population(num_clients=16)
    loaded = data.load_clients(
        "builtin", load_tokenizer("builtin"), batch_size=4, local_steps=4, population=few
    )
    model, params = add_lora(load_model("builtin"), jax.random.key(0), rank=8, alpha=16)
    make = lambda learning_rate: fed_avg(sft_loss, optax.adam(learning_rate))
    count = settings.warm_up + settings.turns
    plan = fedjax_post.Plan(sampler=fedjax_post.uniform(2 if settings.tiny else 8))
    with tempfile.TemporaryDirectory() as directory:
        many = sweep(
            make,
            model,
            loaded.clients,
            grid=Grid({"learning_rate": rates}),
            params=params,
            rounds=count,
            plan=plan,
        )
        one = fedjax_post.run(
            make(rates[0]),
            model,
            loaded.clients,
            params=params,
            rounds=count,
            plan=plan._replace(directory=directory),
        )
        turns = [(_turn(many), _turn(one)) for _ in range(count)][settings.warm_up :]
    seconds = [[turn[side][0] for turn in turns] for side in (0, 1)]
    losses = turns[-1][0][1]["runs"][0][0]["loss"], turns[-1][1][1]["loss"]
    yield ratio(
        f"{_RUNS} runs in one program over one run",
        *seconds,
        aim=Aim(3.0, at_least=False),
        loss_in_sweep=losses[0],
        loss_alone=losses[1],
        losses_agree=losses_agree(*losses, tolerance=1e-3),
    )


def _turn(rounds: Iterator) -> tuple[float, dict]:
    """Seconds of one more round, and its record."""
    began = time.perf_counter()
    state, recorded = next(rounds)
    jax.block_until_ready(state)
    return time.perf_counter() - began, recorded
