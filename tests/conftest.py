"""Settings of the whole suite: compilation cache, strict ranks, and the place of test data."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

# Tiny programs take longer to compile than to run, and are not worth more than one thread.
_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def _is_known(flag: str) -> bool:
    """Whether the installed XLA has a flag: a process that is given an unknown one aborts."""
    reads_flags = "from jaxlib import xla_client; xla_client.CompileOptions()"
    command, environ = [sys.executable, "-c", reads_flags], os.environ | {"XLA_FLAGS": flag}
    return subprocess.run(command, env=environ, capture_output=True).returncode == 0


# Before jax starts; subprocesses inherit it, workers of pytest-xdist too.
if _QUICK[0] not in os.environ.get("XLA_FLAGS", ""):
    quick = " ".join(flag for flag in _QUICK if _is_known(flag))
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import pytest

ROOT = Path(__file__).parent.parent

# A shell's background job ignores Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
    """Modules stay; a trace makes small objects by the thousand, and few circles among them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def fresh_programs():
    """Frees a module's compiled programs behind it: memory stays that of one module."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real checkpoints and data sets; skips where it is missing."""
    folder = Path(os.environ.get("FEDJAX_POST_TEST_DATA", ROOT / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set FEDJAX_POST_TEST_DATA to run this test")
    return folder.resolve()
