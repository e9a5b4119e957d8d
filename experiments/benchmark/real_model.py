"""A real model of 135 million weights on a CPU: our tokens per CPU second over torch's.

All sides take turns on the same cores: ours in the dtype that it chooses by itself, and torch +
peft in float32 and under autocast to bfloat16, of which the faster one counts. Each of them runs
once with its heap as the C library leaves it, and once with freed memory kept.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_post.experiments.benchmark import environments, lm_job
from fedjax_post.experiments.benchmark.lines import Aim, Figure, losses_agree, ratio
from fedjax_post.experiments.benchmark.processes import ours, play, side, take_turns, theirs
from fedjax_post.experiments.benchmark.settings import Settings
from fedjax_post.experiments.benchmark.shapes import TINY
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.precision import choose_dtype

NAME = "smollm2"
# What keeps freed memory in torch's process, as `keep_freed_memory` does in ours
_KEPT = {
    "GLIBC_TUNABLES": (
        "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000:glibc.malloc.arena_max=1"
    )
}
_DTYPES = ("float32", "autocast")


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields a ratio for one core and for two, with each kind of heap, and what two cores gain."""
    python = environments.interpreter(environments.TORCH, settings.cache, given=settings.pythons)
    with tempfile.TemporaryDirectory() as folder:
        job = _write(Path(folder), settings)
        speeds = {}
        for cores in (settings.cores[0], _two_cores(settings)):
            for heap in ("kept", "plain"):
                found = _turns(folder, python, cores=cores, heap=heap, settings=settings)
                figure, speeds[cores, heap] = _figure(job, found, cores=cores, heap=heap)
                yield figure
        one, two = (speeds[cores, "kept"] for cores in (settings.cores[0], _two_cores(settings)))
        yield ratio("SmolLM2: seconds of one core over those of two", two, one, aim=Aim(1.7))


def _write(folder: Path, settings: Settings) -> lm_job.Job:
    """Writes the job for all sides, with the model's weights as safetensors, which torch reads."""
    if settings.tiny:
        model, dtype = lm_job.random_model(folder / "model", TINY), "mixed"
    else:
        try:
            save_model(folder / "model", load_model(NAME))
        except FileNotFoundError as reason:
            raise environments.Skipped(str(reason)) from None
        model, dtype = str(folder / "model"), choose_dtype(NAME)
    job = lm_job.Job(
        model,
        length=16 if settings.tiny else 128,
        num_clients=8,
        cohort_size=1,
        local_steps=2,
        batch_size=4,
        # Adam's first steps are of one size whatever the gradient's, so that a larger one makes the
        # loss of random rows depend on the order of sums: by 4 % between one thread and two
        learning_rate=1e-4,
        dtype=dtype,
        rounds=settings.warm_up + settings.turns,
    )
    lm_job.write_job(folder, job)
    return job


def _turns(
    folder: str, python: Path, *, cores: str, heap: str, settings: Settings
) -> dict[str, Any]:
    """Returns each side's answers to its turns, and its held-out loss after them."""
    threads = str(len(cores.split(","))) if cores else ""
    environ = {"OMP_NUM_THREADS": threads} if threads else {}
    with contextlib.ExitStack() as stack:
        start = lambda *given, **more: stack.enter_context(side(*given, **more))
        sides = {"ours": start("fedjax_post", ours("ours", folder, cores, heap))}
        for dtype in _DTYPES:
            command = theirs(python, "torch_peft", folder, cores, dtype)
            tuned = environ | (_KEPT if heap == "kept" else {})
            sides[dtype] = start(f"torch in {dtype}", command, environ=tuned)
        answers = take_turns(list(sides.values()), settings.turns, warm_up=settings.warm_up)
        losses = [play(one, evaluate=True)["loss"] for one in sides.values()]
    return {name: (a, loss) for name, a, loss in zip(sides, answers, losses, strict=True)}


def _figure(
    job: lm_job.Job, found: dict[str, Any], *, cores: str, heap: str
) -> tuple[Figure, list[float]]:
    """Returns the ratio to torch's faster dtype, and our tokens per second of the clock."""
    rate = lambda name, unit: [a["tokens"] / a[unit] for a in found[name][0]]
    unit = "cpu_seconds" if "," not in cores else "seconds"
    speeds = {name: rate(name, unit) for name in found}
    best = max(_DTYPES, key=lambda name: np.median(speeds[name]))
    count = "two cores" if "," in cores else "one core"
    memory = "freed memory kept" if heap == "kept" else "heap as it is"
    agree = all(losses_agree(found["ours"][1], found[d][1], tolerance=0.01) for d in _DTYPES)
    details = {f"{name}_tokens_per_second": np.median(speeds[name]).item() for name in found}
    details |= {f"{name}_loss": loss for name, (_, loss) in found.items()}
    details |= {"torch_dtype": best, "our_dtype": job.dtype, "losses_agree": agree, "per": unit}
    figure = ratio(
        f"torch + peft, SmolLM2: {count}, {memory}",
        speeds["ours"],
        speeds[best],
        aim=Aim(1.25),
        **details,
    )
    return figure, rate("ours", "seconds")


def _two_cores(settings: Settings) -> str:
    first = settings.cores[0]
    return f"{first},{int(first) - 1 if int(first) else 1}" if first else "0,1"
