"""A full disk: an error that names it, nothing lost, and a run that continues later."""

import errno
import resource
import signal
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from safetensors import SafetensorError

import fedjax_post as fp
from fedjax_post.algorithms import scaffold
from fedjax_post.simulate.room import is_full
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params


@contextmanager
def files_of_at_most(num_bytes):
    """No file may grow beyond: to a program, what a full disk looks like."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)


def play(rounds, **plan):
    plan = fp.Plan(sampler=fp.uniform(40), checkpoint_every=2, **plan)
    algorithm = scaffold(toy_loss, 0.05, participation=0.5)
    return fp.run(
        algorithm, toy_model(), toy_clients(80), params=toy_params(), rounds=rounds, plan=plan
    )


@pytest.mark.heavy
@pytest.mark.parametrize("room", [0, 100, 400, 1500, 6000, 20_000])
def test_a_run_that_finds_no_room_says_so_and_goes_on_when_there_is_some(tmp_path, room):
    """Records, states of clients, their index, checkpoints: whichever is the first not to fit."""
    rounds = play(6, directory=tmp_path)
    next(rounds)
    largest = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    with (
        files_of_at_most(min(room, largest + 100)),
        pytest.raises(OSError, match="no room on the disk for what this run writes") as found,
    ):
        list(rounds)
    assert found.value.errno == errno.ENOSPC
    assert found.value.filename == str(tmp_path)
    straight, resumed = (list(run)[-1][0] for run in (play(6), play(6, directory=tmp_path,
                                                                    resume=True)))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_what_a_library_says_in_words_alone_is_heard_too():
    words = SafetensorError("Error while serializing: I/O error: No space left on device (os ...)")
    assert is_full(words)
    assert not is_full(ValueError("no such column"))
    assert not is_full(PermissionError(errno.EACCES, "Permission denied"))
