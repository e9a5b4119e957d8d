"""What a program sets up once, before it computes, and the words that call it again."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from fedjax_post.simulate.heap import keep_freed_memory

_NAME = "jax_compilation_cache_dir"
_ENABLED = "jax_enable_compilation_cache"


def prepare() -> None:
    """Prepares this process; a second start of a run then compiles almost nothing.

    Other libraries draw their bars of progress only in a terminal, not into log files.
    """
    if not sys.stderr.isatty():
        for library in ("HF_DATASETS", "HF_HUB"):  # read when these are imported, which is later
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    keep_compiled()
    keep_freed_memory()


def keep_compiled() -> Path | None:
    """Keeps compiled programs in the user's cache folder, unless another folder is set.

    `JAX_COMPILATION_CACHE_DIR` sets another folder; `JAX_ENABLE_COMPILATION_CACHE=false` turns
    the cache off.

    Returns:
      The folder that was set here; None if another was set before or the cache is off.
    """
    if getattr(jax.config, _NAME) is not None or not getattr(jax.config, _ENABLED):
        return None
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # A program for one core uses one core wherever it runs, and jax does not tell the two apart
    folder = Path(above) / "fedjax_post" / f"jax-{num_cores()}-cores"
    jax.config.update(_NAME, str(folder))
    # By default jax keeps what took a second to compile; a start compiles dozens of smaller ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def command(name: str, argv: Sequence[str]) -> list[str]:
    """Returns the words of a command that repeats a call, without the place of this installation.

    >>> command("train", ["/some/place/train.py", "--seed=1"])
    ['python', '-m', 'experiments.train', '--seed=1']

    Args:
      name: of the program.
      argv: of the call, the program's path first.
    """
    return ["python", "-m", f"experiments.{name}", *argv[1:]]
