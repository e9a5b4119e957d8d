"""What a program does once, before it computes: it keeps compiled programs, and memory."""

import os
from pathlib import Path

import jax

from fedjax_post.simulate.heap import keep_freed_memory

_NAME = "jax_compilation_cache_dir"


def prepare() -> None:
    """Prepares this process; a second start of a run then compiles next to nothing."""
    keep_compiled()
    keep_freed_memory()


def keep_compiled() -> Path | None:
    """Keeps compiled programs in the user's cache folder, unless another place is set.

    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false`
    keeps nothing.

    Returns:
      The folder that was chosen here; None if that was settled before.
    """
    if getattr(jax.config, _NAME) is not None or not jax.config.jax_enable_compilation_cache:
        return None
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(above) / "fedjax_post" / "jax"
    jax.config.update(_NAME, str(folder))
    # By default only what took a second is kept; a start compiles dozens of smaller programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return folder
