"""A disk that fills: an error that says so, nothing lost, and the run goes on later."""

import resource
import signal
from contextlib import contextmanager

import jax
import numpy as np
import pytest

import fedjax_post as fp
from algorithms import scaffold
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


def test_a_run_that_found_no_room_goes_on_when_there_is_some(tmp_path):
    straight = list(play(6))[-1][0]
    rounds = play(6, directory=tmp_path)
    for _ in range(3):
        next(rounds)
    rows = tmp_path / "clients" / "rows.bin"
    with (
        files_of_at_most(rows.stat().st_size + 100),
        pytest.raises(OSError, match="no room for the states of clients"),
    ):
        for _ in rounds:
            pass
    resumed = list(play(6, directory=tmp_path, resume=True))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed[-1][0])
