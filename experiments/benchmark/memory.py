"""Peak memory of the compiled program, as the compiler reports it: nothing is run."""

from collections.abc import Iterator
from typing import Any

import jax
import optax

from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg
from fedjax_post.core import engine
from fedjax_post.core.wire import num_bytes
from fedjax_post.experiments.benchmark.lines import Aim, Figure
from fedjax_post.experiments.benchmark.lm_job import Job, data_of
from fedjax_post.experiments.benchmark.settings import Settings, select
from fedjax_post.experiments.benchmark.shapes import MEDIUM, TINY
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.quantize import quantize_model
from fedjax_post.model.views import init_model
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.memory import visit_memory
from fedjax_post.simulate.programs import device

_TX = optax.adam(1e-3)
_FEW, _MANY = 4, 16  # clients side by side


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields peaks by cohort and chunk, with and without rematerialisation, and quantized."""
    shape = TINY if settings.tiny else MEDIUM
    variants = {
        "recomputing": ("none", True),
        "keeping activations": ("none", False),
        "int8 base": ("int8", True),
        "nf4 base": ("nf4", True),
    }
    for name, (kind, remat) in select(variants, settings):
        yield from _variant(name, shape, kind=kind, remat=remat)


def _variant(name: str, shape: dict[str, Any], *, kind: str, remat: bool) -> Iterator[Figure]:
    model = init_model(DecoderConfig(**shape, remat=remat), jax.random.key(0))
    if kind != "none":
        model = quantize_model(model, kind)
    job = Job("random", length=128, num_clients=64, batch_size=4, local_steps=4)
    rank = min(8, shape["head_dim"])
    model, params = add_lora(model, jax.random.key(0), rank=rank, alpha=16)
    clients, _ = data_of(job, vocab_size=shape["vocab_size"])
    algorithm = fed_avg(sft_loss, _TX)
    peaks = {
        lanes: visit_memory(algorithm, model, clients, params=params, chunk_size=lanes).total
        for lanes in (1, _FEW, _MANY)
    }
    adapter, optimizer = num_bytes(params), num_bytes(_TX.init(params))
    known = {"base_bytes": num_bytes(model.variables), "adapter_bytes": adapter}
    known |= {"optimizer_bytes": optimizer, "length": job.length, "batch_size": job.batch_size}
    each = (peaks[_MANY] - peaks[_FEW]) / (_MANY - _FEW)
    details = {**known, "activation_bytes": each - adapter - optimizer}
    yield Figure(f"{name}: an additional stacked client", each, "bytes", details=details)
    for lanes, size in peaks.items():
        yield Figure(f"{name}: peak of a chunk of {lanes}", float(size), "bytes", details=known)
    totals = [_total_bytes(algorithm, model, params, clients, cohort) for cohort in (_FEW, 4096)]
    flat = (peaks[_FEW] - totals[0] + totals[1]) / peaks[_FEW]
    aim = Aim(1.01, at_least=False)
    title = f"{name}: peak at a cohort of 4096 over one of {_FEW}, chunks of {_FEW}"
    yield Figure(title, flat, "ratio", aim=aim, details=known)


def _total_bytes(algorithm, model, params, clients, cohort_size: int) -> int:
    """Bytes of the running aggregate, which alone on the device may depend on the cohort size."""
    programs = device(algorithm)
    state = jax.eval_shape(lambda p: engine.init(algorithm, p), params)
    replica = jax.eval_shape(programs.broadcast, state)
    visits = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((_FEW, *x.shape), x.dtype),
        clients.visit(0, data_rng(0, 0, 0)),
    )
    begin = lambda model, replica, data: programs.start(model, replica, data, cohort_size)
    return num_bytes(jax.eval_shape(begin, model, replica, visits))
