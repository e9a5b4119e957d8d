"""Two processes started from the command line are one run; `tests/simulate` tests the engine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from fcntl import LOCK_EX, LOCK_SH

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedjax_post.experiments import compare, train
from fedjax_post.experiments.flags import distributed
from fedjax_post.report.records import read_records
from fedjax_post.study import folder

TRAIN = "python -m fedjax_post.experiments.train"

FLAGS = ("--algorithm=scaffold", "--local_steps=2")
ROUNDS = 4
BY_HAND = "--coordinator_address=localhost:1 --num_processes=2"


def start_pair(*given):
    """Two processes of one device each, with the same flags but for their number."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "-m", "experiments.train", *given]
    command += [f"--coordinator_address=localhost:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [*command, f"--process_id={number}"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def ended(pair):
    """Exit code, output and errors of each process."""
    try:
        said = [process.communicate(timeout=200) for process in pair]
    finally:
        for process in pair:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(pair, said, strict=True)]


def cut(pair, directory, *, which, by):
    """Sends a signal to one of the two behind the first round; what `ended` returns."""
    records = directory / "records.jsonl"
    for _ in range(600):
        if (records.exists() and records.read_text()) or pair[0].poll() is not None:
            break
        time.sleep(0.1)
    pair[which].send_signal(by)
    return ended(pair)


@pytest.fixture(scope="module")
def straight(tiny_flags, tmp_path_factory):
    """The folder of the same run in one process, never interrupted."""
    directory = tmp_path_factory.mktemp("one") / "run"
    given = *tiny_flags, *FLAGS, f"--num_rounds={ROUNDS}", f"--output_dir={directory}"
    assert train.main(["train", *given]) == 0
    return directory


@pytest.fixture(scope="module")
def pair(tiny_flags, tmp_path_factory):
    """The folder of a run that one process began and two end, and what these said."""
    directory = tmp_path_factory.mktemp("pair") / "run"
    given = *tiny_flags, *FLAGS, f"--output_dir={directory}"
    assert train.main(["train", *given, "--num_rounds=2"]) == 0
    (directory / "summary.json").unlink()
    shutil.rmtree(directory / "adapter")
    more = "--resume", f"--num_rounds={ROUNDS}", "--mesh=clients:2"
    said = ended(start_pair(*given, *more))
    assert [code for code, *_ in said] == [0, 0], said[0][2][-3000:] + said[1][2][-3000:]
    return directory, said


def summary(directory):
    return json.loads((directory / "summary.json").read_text())


def assert_same_run(one, other):
    """Counts and bytes are equal; losses up to the order of sums."""
    timed = {"seconds", "tokens_per_second"}
    first, second = read_records(one), read_records(other)
    assert len(first) == len(second)
    for line, record in zip(first, second, strict=True):
        assert line.keys() == record.keys()
        for name in line.keys() - timed:
            whole = isinstance(line[name], (int, list)) or name == "eval_exact_match"
            expected = line[name] if whole else pytest.approx(line[name], rel=1e-4)
            assert record[name] == expected, name
    for name in ("bytes_up", "bytes_down", "tokens", "trained_parameters", "population"):
        assert summary(one)[name] == summary(other)[name]
    assert summary(one)["final"]["loss"] == pytest.approx(summary(other)["final"]["loss"], rel=1e-4)
    assert summary(one)["final"]["exact_match"] == summary(other)["final"]["exact_match"]
    a, b = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-5)


@pytest.mark.heavy
def test_two_processes_end_a_run_as_one_would(pair, straight):
    assert_same_run(straight, pair[0])
    assert summary(pair[0])["device"].startswith("2 x ")


@pytest.mark.heavy
def test_the_first_process_alone_shows_and_writes(pair):
    directory, ((_, shown, _), (_, shown_by_other, errors)) = pair
    assert "per client and round" in shown
    assert str(directory) in shown
    assert "exact match" not in shown_by_other + errors
    assert "round" not in errors
    lines = (directory / "spec.json").read_text()
    assert not [name for name in distributed.FLAGS if name in lines]


def assert_goes_on(run, tiny_flags, mesh):
    """One process takes the run a round further, and ends like one that did all of it."""
    rounds = f"--num_rounds={len(read_records(run)) + 1}"
    assert train.main(["train", f"--output_dir={run}", "--resume", mesh, rounds]) == 0
    alone = run.with_name("alone")
    assert train.main(["train", *tiny_flags, *FLAGS, rounds, f"--output_dir={alone}"]) == 0
    assert_same_run(alone, run)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_ends_both_behind_a_round(tiny_flags, tmp_path, by):
    """With a checkpoint, from which one process ends the run as if nothing had been."""
    run = tmp_path / "run"
    given = *tiny_flags, *FLAGS, f"--output_dir={run}", "--checkpoint_every=100"
    said = cut(start_pair(*given, "--num_rounds=99", "--mesh=clients:2"), run, which=1, by=by)
    assert [code for code, *_ in said] == [130, 130], said
    for number, (_, _, errors) in enumerate(said):
        assert f"interrupted; to continue: {TRAIN} --output_dir={run}" in errors
        assert "--resume --coordinator_address=localhost:" in errors
        assert f"--process_id={number}" in errors
    done = len(read_records(run))
    assert (run / "checkpoints" / str(done)).is_dir()
    assert done < 99
    assert_goes_on(run, tiny_flags, "--mesh=")


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_process_costs_what_no_checkpoint_holds(tiny_flags, tmp_path, which):
    """jax may abort the other one before that has said anything; what is kept is the same."""
    run = tmp_path / "run"
    given = *tiny_flags, *FLAGS, f"--output_dir={run}", "--checkpoint_every=1"
    pair = start_pair(*given, "--num_rounds=99", "--mesh=clients:2")
    code, _, errors = cut(pair, run, which=which, by=signal.SIGKILL)[1 - which]
    assert code in (1, -signal.SIGABRT)
    if code == 1:
        assert "error: another process has ended (" in errors
        assert f"to continue: {TRAIN} --output_dir={run} --resume" in errors
    assert_goes_on(run, tiny_flags, "--mesh=clients:1")


@pytest.mark.slow
def test_what_one_cannot_do_all_refuse(tiny_flags, tmp_path):
    (tmp_path / "other").mkdir()
    given = *tiny_flags, *FLAGS, "--output_dir=run", "--mesh=clients:3"
    for code, _, errors in ended(start_pair(*given)):
        assert code == 2
        assert "--mesh=clients:3 is for 3 devices and there are 2 in 2 processes" in errors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--process_id=0", "--process_id=0 needs --coordinator_address and --num_processes too"),
        ("--distributed", "--distributed needs --mesh for the devices of all processes"),
        ("--distributed --mesh=clients:2 --executor=host", "computes in one process; leave one"),
        (f"{BY_HAND} --process_id=2", "--process_id=2 must be less than --num_processes=2"),
        (f"{BY_HAND} --process_id=-1", "--process_id=-1: -1 is not a non-negative integer"),
        (
            "--distributed --mesh=clients:2 --coordinator_address=localhost",
            "--coordinator_address=localhost is not host:port of process 0; give one, such as",
        ),
        (
            "--distributed --mesh=clients:2 --coordinator_address=nowhere.invalid:1",
            "there is no host nowhere.invalid; check the spelling",
        ),
    ],
)
def test_flags_are_refused_before_anybody_is_waited_for(call, tmp_path, capsys, given, said):
    assert call(*given.split()) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_refused(call, capsys):
    with socket.create_server(("localhost", 0)) as taken:
        given = f"--coordinator_address=localhost:{taken.getsockname()[1]}", "--num_processes=2"
        assert call(*given, "--process_id=0", "--mesh=clients:2") == 2
    assert "process 0 cannot listen there (Address already in use)" in capsys.readouterr().err


@pytest.mark.parametrize("first_is_there", [False, True])
def test_who_is_missing_is_said(call, monkeypatch, capsys, first_is_there):
    never = threading.Event()
    monkeypatch.setattr(distributed, "PATIENCE", 0.1)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: never.wait(30))
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        if not first_is_there:
            server.close()
        given = f"--coordinator_address=localhost:{port}", "--num_processes=2", "--process_id=1"
        assert call(*given, "--mesh=clients:2") == 2
    never.set()
    said = "not all of them connected to" if first_is_there else "there was no answer within 0.1"
    assert said in capsys.readouterr().err


def test_no_cluster_is_said(call, monkeypatch, capsys):
    def initialize(**given):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    assert call("--distributed", "--mesh=clients:2") == 2
    assert "--distributed: no cluster was found that names the" in capsys.readouterr().err


def test_a_comparison_runs_in_one_process(tiny_flags, tmp_path, capsys):
    given = [flag for flag in tiny_flags if not flag.startswith("--algorithm")]
    given += ["--algorithms=fed_avg", f"--output_dir={tmp_path / 'comparison'}", "--distributed"]
    assert compare.main(["compare", *given, "--mesh=clients:1"]) == 2
    assert "--distributed is not a flag" in capsys.readouterr().err  # of this program


def test_a_folder_that_processes_share_is_not_free(tmp_path):
    """Until the last of them has ended."""
    first = lambda: folder.hold(tmp_path, locks=(LOCK_EX, LOCK_SH, None))
    other = lambda: folder.hold(tmp_path, locks=(None, None, LOCK_SH))
    with other(), pytest.raises(BlockingIOError), first():
        pass
    with first(), other(), pytest.raises(BlockingIOError), folder.hold(tmp_path):
        pass
