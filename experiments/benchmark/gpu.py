"""On an accelerator: tokens per second, utilisation and memory, by the number of stacked clients.

Random weights in bfloat16, LoRA on the attention projections, full rows, one row per client and
step. A token costs 2 N operations in the forward pass and 2 N for the gradients of activations,
where N counts the weights that multiply; frozen weights get no gradient. Rematerialisation repeats
the forward pass: 6 N with it, 4 N without. Utilisation (MFU) is these operations per second over
the peak of the device.
"""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import fedjax_post
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg
from fedjax_post.experiments.benchmark import environments, lm_job, peers
from fedjax_post.experiments.benchmark.lines import Aim, Figure
from fedjax_post.experiments.benchmark.settings import Settings, select
from fedjax_post.experiments.benchmark.shapes import LLAMA_1B, MISTRAL_7B, TINY
from fedjax_post.hub.load import num_parameters
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import LanguageModel, init_model
from fedjax_post.objectives.sft import sft_loss

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# Dense bfloat16 operations per second, from the vendors' data sheets.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "TPU v5 lite": 197e12}
_SHAPES = {"Llama-3.2-1B": LLAMA_1B, "Mistral-7B": MISTRAL_7B}
_COUNTS = (2, 8, 32, 64)


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields the figures of each shape, rank and treatment of activations, fewest clients first."""
    shapes = {"tiny": TINY} if settings.tiny else _SHAPES
    ranks = (2,) if settings.tiny else (16, 32)
    parts = {
        f"{name}, rank {rank}, {'recomputing' if remat else 'keeping activations'}": partial(
            _stacked, shape, rank=rank, remat=remat
        )
        for name, shape in shapes.items()
        for rank in ranks
        for remat in (True, False)
    }
    parts |= {
        f"{name}, rank {ranks[0]}, over torch + peft": partial(_against_torch, shape, rank=ranks[0])
        for name, shape in shapes.items()
    }
    for title, part in select(parts, settings):
        yield from part(title=title, settings=settings)


def _stacked(
    shape: dict[str, Any], *, rank: int, remat: bool, title: str, settings: Settings
) -> Iterator[Figure]:
    config = DecoderConfig(**shape, remat=remat)
    model = init_model(config, jax.random.key(0), dtype="bfloat16")
    multiplying = num_parameters(model)
    if not config.tied_head:  # the embedding is looked up
        multiplying -= config.vocab_size * config.hidden_size
    key = jax.random.key(0)
    model, params = add_lora(model, key, rank=rank, alpha=2 * rank, targets=_ATTENTION)
    peak_flops = settings.peak_flops or _peak_flops()
    for count in (2,) if settings.tiny else _COUNTS:
        job = _job("random", clients=count, rank=rank, settings=settings)
        name = f"{title}, {count} clients"
        try:
            speeds, loss = _speeds(model, params, job, settings)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{name}: does not fit", flush=True)
            return
        known = {"clients": count, "length": job.length, "weights": multiplying, "loss": loss}
        known |= {"local_steps": job.local_steps, "operations_a_token": 6 if remat else 4}
        low, middle, high = np.percentile(speeds, [25, 50, 75]).tolist()
        yield Figure(f"{name}: speed", middle, "tokens/s", (low, high), details=known)
        if peak_flops:
            used = known["operations_a_token"] * multiplying / peak_flops
            quartiles = (low * used, high * used)
            aim = Aim(0.5) if "1B" in title and count >= 32 else None
            yield Figure(f"{name}: MFU", middle * used, "ratio", quartiles, aim, known)
        if peak := (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
            yield Figure(f"{name}: peak memory so far", float(peak), "bytes", details=known)


def _speeds(
    model: LanguageModel, params: Any, job: lm_job.Job, settings: Settings
) -> tuple[list[float], float]:
    """Tokens per second of the counted rounds, and the last loss."""
    clients, _ = lm_job.data_of(job, vocab_size=model.config.vocab_size)
    plan = fedjax_post.Plan(
        sampler=fedjax_post.uniform(job.cohort_size), chunk_size=job.cohort_size
    )
    algorithm = fed_avg(sft_loss, optax.adam(job.learning_rate))
    count = settings.warm_up + settings.turns
    rounds: Any = fedjax_post.run(algorithm, model, clients, params=params, rounds=count, plan=plan)
    speeds = []
    for _ in range(count):
        began = time.perf_counter()
        state, record = next(rounds)
        jax.block_until_ready(state)
        speeds.append(record["num_read"] / (time.perf_counter() - began))
    rounds.close()
    return speeds[settings.warm_up :], record["loss"]


def _against_torch(
    shape: dict[str, Any], *, rank: int, title: str, settings: Settings
) -> Iterator[Figure]:
    """Eight clients, one row a step; both sides use the same card and take turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = lm_job.random_model(Path(folder), shape, dtype="bfloat16")
        job = _job(path, clients=8, rank=rank, settings=settings)
        on_gpu = jax.default_backend() == "gpu"
        job = job._replace(dtype="bfloat16", device="cuda" if on_gpu else "cpu")
        try:
            yield peers.compare_lm(title, job, settings, aim=Aim(1.5))
        except environments.Skipped as reason:
            print(f"{title}: skipped, {reason}", flush=True)


def _job(model: str, *, clients: int, rank: int, settings: Settings) -> lm_job.Job:
    return lm_job.Job(
        model=model,
        length=16 if settings.tiny else 512,
        num_clients=clients,
        cohort_size=clients,
        local_steps=1 if settings.tiny else 4,
        batch_size=1,
        chunk_size=clients,
        rank=rank,
        alpha=2 * rank,
        targets=_ATTENTION,
        learning_rate=1e-4,
    )


def _peak_flops() -> float:
    kind = jax.devices()[0].device_kind
    return next((peak for name, peak in _PEAKS.items() if name in kind), 0.0)
