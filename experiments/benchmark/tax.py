"""The cost of a federated round beyond central training on the same tokens.

Two runs take turns in one process, round by round: a federation, and one central
LoRA run that takes the same steps on the union of its clients' batches, with
the same optimizer. Both prepare data on the host and write records.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import optax

import fedjax_post
from fedjax_post import core, data
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_adam, fed_avg, fed_ex_lora, scaffold
from fedjax_post.algorithms.references import central
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.experiments.benchmark.lines import Aim, Figure, ratio
from fedjax_post.experiments.benchmark.settings import Settings, select
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.objectives.sft import sft_loss

_RATE = 1e-3
_BATCH_SIZE = 4


def _sparse(cohort_share: float) -> Algorithm:
    del cohort_share
    link = core.error_feedback(core.top_k(0.01))
    return fed_avg(sft_loss, optax.adam(_RATE))._replace(uplink=link)


# (cohort size over population) -> the algorithm; and the ratio that it should reach
ALGORITHMS: dict[str, tuple[Callable[[float], Algorithm], float]] = {
    "FedAvg": (lambda share: fed_avg(sft_loss, optax.adam(_RATE)), 0.95),
    "SCAFFOLD": (lambda share: scaffold(sft_loss, _RATE, participation=share), 0.85),
    "FedAdam": (lambda share: fed_adam(sft_loss, optax.adam(_RATE)), 0.85),
    "top-k with error feedback": (_sparse, 0.85),
    "FedEx-LoRA": (lambda share: fed_ex_lora(sft_loss, optax.adam(_RATE)), 0.85),
}


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields a ratio for each algorithm, cohort size and number of local steps."""
    sizes = (2,) if settings.tiny else (8, 32)
    steps = (1,) if settings.tiny else (1, 8)
    named = {
        f"{name}, cohort {size}, local steps {count}": partial(
            _compare, name, cohort_size=size, local_steps=count
        )
        for name, size, count in itertools.product(ALGORITHMS, sizes, steps)
    }
    for name, compare in select(named, settings):
        yield compare(title=name, settings=settings)


def _compare(
    name: str, *, cohort_size: int, local_steps: int, title: str, settings: Settings
) -> Figure:
    make, aim = ALGORITHMS[name]
    # SCAFFOLD's local optimizer is SGD by definition
    central_tx = optax.sgd(_RATE) if name == "SCAFFOLD" else optax.adam(_RATE)
    loaded = data.load_clients(
        "builtin",
        load_tokenizer(settings.model),
        batch_size=_BATCH_SIZE,
        local_steps=local_steps,
        population=data.Population(num_clients=max(64, cohort_size)),
    )
    model, params = add_lora(load_model(settings.model), jax.random.key(0), rank=8, alpha=16)
    rounds = settings.warm_up + settings.turns
    with tempfile.TemporaryDirectory() as folder:

        def start(name, algorithm, feed):
            plan = fedjax_post.Plan(
                sampler=fedjax_post.uniform(cohort_size), directory=f"{folder}/{name}", feed=feed
            )
            return fedjax_post.run(
                algorithm, model, loaded.clients, params=params, rounds=rounds, plan=plan
            )

        sides = [
            start("federated", make(cohort_size / len(loaded.clients)), fedjax_post.chunks),
            start("central", central(sft_loss, central_tx), fedjax_post.pooled),
        ]
        turns = [[_turn(side) for side in sides] for _ in range(rounds)][settings.warm_up :]
    speeds = [[speed for speed, _ in side] for side in zip(*turns, strict=True)]
    losses = [side[-1][1] for side in zip(*turns, strict=True)]
    return ratio(
        title,
        *speeds,
        aim=Aim(aim),
        batch_size=_BATCH_SIZE,
        federated_tokens_per_second=sorted(speeds[0])[len(turns) // 2],
        central_tokens_per_second=sorted(speeds[1])[len(turns) // 2],
        federated_loss=losses[0],
        central_loss=losses[1],
    )


def _turn(side: Iterator) -> tuple[float, float]:
    """Tokens per second and the loss of one more round, the writing of its record included."""
    began = time.perf_counter()
    state, record = next(side)
    jax.block_until_ready(state)
    return record["num_read"] / (time.perf_counter() - began), record["loss"]
