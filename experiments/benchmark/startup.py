"""The time to start: the import, and the first round of the default run."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedjax_post.experiments.benchmark.lines import Aim, Figure
from fedjax_post.experiments.benchmark.processes import ROOT
from fedjax_post.experiments.benchmark.settings import Settings, select

_IMPORT = """
import time, jax, optax, flax
began = time.perf_counter()
import fedjax_post
print(time.perf_counter() - began)
"""


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields the seconds that the import adds, and those to the first round, for two starts."""
    parts = {"import": _imports, "default run": _starts}
    for _, part in select(parts, settings):
        yield from part(settings)


def _imports(settings: Settings) -> Iterator[Figure]:
    command = [sys.executable, "-c", _IMPORT]
    seconds = [
        float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for _ in range(settings.warm_up + settings.turns)
    ][settings.warm_up :]
    low, middle, high = np.percentile(seconds, [25, 50, 75]).tolist()
    name = "import of fedjax_post, beyond jax, optax and flax"
    details = {"turns": len(seconds)}
    yield Figure(name, middle, "s", (low, high), Aim(0.3, at_least=False), details)


def _starts(settings: Settings) -> Iterator[Figure]:
    more = ["--num_clients=2", "--cohort_size=1", "--eval_examples=8"] if settings.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        # What the library keeps between starts is in the user's cache folder: here a new one.
        fresh = {"XDG_CACHE_HOME": f"{folder}/cache"}
        first, second = (
            seconds_to_first_round(Path(folder) / name, more, environ=fresh)
            for name in ("first", "second")
        )
    limit = Aim(10.0, at_least=False)
    yield Figure("default run, start to end of first round: nothing compiled", first, "s")
    name = "default run, start to end of first round: second start"
    yield Figure(name, second, "s", aim=limit)


def seconds_to_first_round(directory: Path, more: list[str], *, environ: dict[str, str]) -> float:
    """Returns the seconds until the default run writes its first record; then stops the run.

    Args:
      directory: of the run; a new folder.
      more: further flags.
      environ: environment variables to set in addition.

    Raises:
      RuntimeError: if the run ends without a record.
    """
    command = [
        sys.executable,
        "-m",
        "fedjax_post.experiments.train",
        f"--output_dir={directory}",
        *more,
    ]
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**inherited, **environ}, stdout=output, stderr=output
        )
        records = directory / "records.jsonl"
        while not (records.exists() and records.read_bytes().endswith(b"\n")):
            if process.poll() is not None:
                output.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended early:\n{output.read()[-2000:]}")
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGINT)
        process.wait()
    return seconds
