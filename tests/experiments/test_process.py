"""Where compiled programs are stored, and which memory is freed."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from fedjax_post.experiments.process import keep_compiled, num_cores

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def _restored():
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    jax.config.update(NAMES[0], None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "fedjax_post" / f"jax-{num_cores()}-cores"
    assert keep_compiled() == kept
    assert jax.config.jax_compilation_cache_dir == str(kept)


def test_programs_for_one_core_are_kept_apart(monkeypatch, tmp_path):
    jax.config.update(NAMES[0], None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert keep_compiled() == tmp_path / "fedjax_post" / "jax-1-cores"


def test_a_place_that_is_set_is_left_alone(tmp_path):
    jax.config.update(NAMES[0], str(tmp_path))
    assert keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


PAGES = """
import resource, sys
import jax, jax.numpy as jnp
from fedjax_post.simulate.heap import keep_freed_memory

if sys.argv[1:]:
    print(keep_freed_memory())
step = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)  # 64 MiB in between
x = jnp.ones((4096, 8))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(8):
    before = faults()
    step(x).block_until_ready()
    counts.append(faults() - before)
print(min(counts))  # on a busy machine a step may begin before the last one's memory is back
"""


@pytest.mark.heavy
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_a_step_touches_no_new_memory():
    def faults(*arguments):
        command = [sys.executable, "-c", PAGES, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    (given_back,) = faults()
    assert int(given_back) > 8_000
    kept, again = faults("keep")
    assert kept == "True"
    assert int(again) < 100
