"""Ctrl-C and SIGTERM: where they are raised, what they cannot interrupt, and what remains."""

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post.algorithms import fed_avg
from fedjax_post.simulate import checkpoint, stopping
from fedjax_post.simulate.processes import PartedStore
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

SIGNALS = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def usual_handlers():
    """Python's own, which shells mute in the background; and they are left as they were found."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_waits_for_a_place_where_nothing_is_lost(signum, capfd):
    reached = []

    def work():
        with stopping.catch_signals(), stopping.defer_signals():
            signal.raise_signal(signum)
            reached.append("after the signal")
            stopping.check()
            reached.append("after the check")

    with pytest.raises(stopping.Interrupted) as found:
        work()
    assert reached == ["after the signal"]
    assert found.value.signum == signum
    assert isinstance(found.value, KeyboardInterrupt)
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


def test_a_signal_that_met_no_check_is_raised_at_the_end_of_what_deferred_it():
    reached = []

    def work():
        with stopping.catch_signals():
            with stopping.defer_signals():
                signal.raise_signal(signal.SIGINT)
                reached.append("within")
            reached.append("after it")

    with pytest.raises(stopping.Interrupted):
        work()
    assert reached == ["within"]


def test_outside_of_a_round_a_signal_is_raised_where_it_comes():
    with stopping.catch_signals(), pytest.raises(stopping.Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_a_callback_ignores_is_raised_again():
    """As within jax's callback of the garbage collector: Python ignores what it raises."""

    def interrupt(phase, info):
        gc.callbacks.remove(interrupt)
        signal.raise_signal(signal.SIGINT)

    def work():
        with stopping.catch_signals():
            gc.callbacks.append(interrupt)
            gc.collect()
            time.sleep(5)

    with pytest.raises(stopping.Interrupted):
        work()


def test_what_is_muted_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping.catch_signals(), stopping.defer_signals():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.heavy
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_second_signal_ends_a_program_at_once(signum):
    code = """
        import signal, sys, time
        from fedjax_post.simulate import stopping
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with stopping.catch_signals(), stopping.defer_signals():
            print("ready", flush=True)
            time.sleep(60)
            print("went on", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.stderr.readline() == "\n"
    assert "again stops at once" in process.stderr.readline()
    process.send_signal(signum)
    assert process.wait(timeout=10) == -signum


def play(directory, *callbacks, rounds=6, **plan):
    plan = fp.Plan(
        sampler=fp.uniform(4), chunk_size=2, directory=directory, checkpoint_every=4, **plan
    )
    return fp.run(
        fed_avg(toy_loss, optax.sgd(0.05)), toy_model(), toy_clients(), params=toy_params(),
        rounds=rounds, plan=plan, callbacks=callbacks,
    )  # fmt: skip


def interrupt_in(round):
    """A callback that presses Ctrl-C, and then has more to do."""

    def callback(state, record):
        if record["round"] == round:
            signal.raise_signal(signal.SIGINT)
        return {"went_on": True}

    return callback


def test_in_a_notebook_too_a_round_is_finished_and_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        list(play(tmp_path, interrupt_in(2)))
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").open()]
    assert [record["went_on"] for record in records] == [True] * 3
    straight, resumed = (list(run)[-1][0] for run in (play(None), play(tmp_path, resume=True)))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


@pytest.mark.heavy
@pytest.mark.parametrize("executor", [fp.device, fp.host])
def test_a_round_ends_between_two_chunks_of_clients(tmp_path, monkeypatch, executor):
    visited = []
    read = PartedStore.read

    def interrupt_at_a_rounds_first_chunk(store, client_ids):
        visited.append(client_ids)
        if len(visited) == 3:
            signal.raise_signal(signal.SIGINT)
        return read(store, client_ids)

    monkeypatch.setattr(PartedStore, "read", interrupt_at_a_rounds_first_chunk)
    with pytest.raises(KeyboardInterrupt):
        list(play(tmp_path, executor=executor))
    assert len(visited) == 3  # of two chunks a round
    assert fp.restore(tmp_path, fed_avg(toy_loss, optax.sgd(0.05)), toy_params()).rounds_done == 1


def test_ctrl_c_does_not_tear_a_checkpoint(tmp_path, monkeypatch):
    save = checkpoint.save

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(play(tmp_path))
    assert fp.restore(tmp_path, fed_avg(toy_loss, optax.sgd(0.05)), toy_params()).rounds_done == 4


def test_a_second_ctrl_c_in_a_notebook_is_raised_where_it_comes(tmp_path):
    def twice(state, record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the callback went on")

    with pytest.raises(KeyboardInterrupt):
        list(play(tmp_path, twice))


def test_somebody_elses_handler_is_left_alone(tmp_path):
    heard = []
    signal.signal(signal.SIGINT, lambda signum, frame: heard.append(signum))
    assert len(list(play(tmp_path, interrupt_in(2)))) == 6
    assert heard == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)
