"""Where the time of one training step goes: shares by part of the model, from the compiled program.

A CPU runs a compiled program as a list of operations, whose times jax's profiler records. Each of
them bears the name of the code that it comes from.
"""

import collections
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from fedjax_post.experiments.benchmark import lm_job
from fedjax_post.experiments.benchmark.lines import Figure
from fedjax_post.experiments.benchmark.settings import Settings
from fedjax_post.experiments.benchmark.sides import channel
from fedjax_post.hub.precision import choose_dtype
from fedjax_post.objectives.sft import sft_loss

LENGTH, BATCH = 128, 4
# part -> pattern of the names of its operations; the first one that matches counts
PARTS: Mapping[str, str] = {
    "products with frozen weights": r"_times/dot_general",
    "products with the adapter": r"_low_rank/dot_general",
    "reading and rounding their operands": r"_times/|_low_rank/|_dense/",
    "the head and the loss": r"total_loss/(while|\w+$)|gnv|gnd",
    "attention without its projections": r"/attention/(?!.*_proj)",
    "norms, activations and sums": r"/(mlp|layers|norm|input_norm|mlp_norm)/",
}
_REST = "what the backward pass keeps, the optimizer, and others"
_CALLS = ("while", "call", "conditional", "ThunkExecutor", "end")  # these contain others
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", re.MULTILINE)


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields the share of each part of a step, the largest first."""
    channel.pin(settings.cores[0])
    dtype, length = choose_dtype(settings.model), LENGTH // 8 if settings.tiny else LENGTH
    job = lm_job.Job(settings.model, length=length, batch_size=BATCH, dtype=dtype)
    step, args = _step(job)
    operations = {
        name: origin.partition('op_name="')[2].partition('"')[0]
        for name, origin in _INSTRUCTION.findall(step.as_text())
    }
    turns = [_times(step, args, operations) for _ in range(settings.warm_up + settings.turns)]
    turns = turns[settings.warm_up :]
    shares = {
        part: np.array([turn[part] / sum(turn.values()) for turn in turns])
        for part in (*PARTS, _REST)
    }
    seconds = float(np.median([sum(turn.values()) for turn in turns]))
    facts = {"model": settings.model, "dtype": dtype, "seconds_of_a_step": seconds}
    for part, share in sorted(shares.items(), key=lambda item: -np.median(item[1])):
        low, middle, high = np.percentile(share, [25, 50, 75]).tolist()
        yield Figure(f"share of {part}", middle, "ratio", (low, high), details=facts)


def _step(job: lm_job.Job) -> tuple[Any, tuple[Any, ...]]:
    """Returns a compiled step of Adam on LoRA, and its arguments."""
    model, params = lm_job.model_of(job)
    shape = job.batch_size, job.length
    tokens = np.random.default_rng(0).integers(2, model.config.vocab_size, shape)
    batch = {"tokens": tokens.astype(np.int32), "loss_mask": np.ones(shape, bool)}
    tx = optax.adam(1e-4)

    def step(params, opt_state, model, batch):
        grads, _ = jax.grad(sft_loss, has_aux=True)(params, model, batch, None)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    args = params, tx.init(params), model, batch
    return jax.jit(step).lower(*args).compile(), args


def _times(step: Any, args: tuple[Any, ...], operations: Mapping[str, str]) -> dict[str, float]:
    """Returns the seconds of each part, in one step.

    Args:
      step: the compiled step.
      args: its arguments.
      operations: by name, the code that each comes from; "" where the program does not say.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(step(*args))
        (file,) = Path(folder).rglob("*.xplane.pb")
        found: dict[str, float] = collections.defaultdict(float)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for event in (event for line in plane.lines for event in line.events):
                if event.name in operations and event.name.split(".")[0] not in _CALLS:
                    found[_part(operations[event.name])] += event.duration_ns / 1e9
    return {part: found[part] for part in (*PARTS, _REST)}


def _part(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), _REST)
