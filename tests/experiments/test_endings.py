"""How programs fail: one line for bad flags and files, a traceback for a user's own code."""

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

import fedjax_post
from fedjax_post.experiments import compare, endings, train
from tests.simulate.test_full_disk import files_of_at_most

ROOT = Path(__file__).parent.parent.parent
TRAIN = "python -m fedjax_post.experiments.train"

OWN = '''
"""An algorithm of somebody's own, with mistakes in it."""

import optax
from fedjax_post.algorithms import fed_avg
from fedjax_post.core.world import ClientTx, LossFn, WeighFn


def in_update(loss_fn: LossFn, client_tx: ClientTx, weigh_fn: WeighFn):
    algorithm = fed_avg(loss_fn, client_tx, weigh_fn=weigh_fn)

    def update(*args):
        raise ValueError("a mistake in update")

    return algorithm._replace(client=algorithm.client._replace(update=update))


def in_factory(loss_fn: LossFn, client_tx: ClientTx):
    return fed_avg(loss_fn, None).no_such_part


def refused_by_ours(loss_fn: LossFn):
    return fed_avg(loss_fn, optax.sgd(0.1), weigh_fn="tokens")


def reward(answer, row):
    return open("no such file")
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of somebody's own on the path; returns the frames of an error that lie in it."""
    path = tmp_path / "own_mistakes.py"
    path.write_text(OWN)
    (tmp_path / "own_import.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda error: [
        frame.name for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]  # fmt: skip
    for name in ("own_mistakes", "own_import"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("executor", ["device", "host"])
def test_an_error_in_ones_own_algorithm_keeps_its_traceback(call, own, executor):
    with pytest.raises(ValueError, match="a mistake in update") as found:
        call("--algorithm=own_mistakes:in_update", f"--executor={executor}")
    assert own(found.value) == ["update"]


def test_so_does_one_in_its_factory(call, own):
    with pytest.raises(AttributeError, match="no_such_part") as found:
        call("--algorithm=own_mistakes:in_factory")
    assert own(found.value) == ["in_factory"]


def test_so_does_one_in_a_module_that_it_imports(call, own):
    with pytest.raises(ImportError, match="a_package_that_is_not_here") as found:
        call("--algorithm=own_import:anything")
    assert "own_import.py" in "".join(traceback.format_exception(found.value))


def test_so_does_one_behind_a_reward(call, own):
    given = "--objective=grpo", "--reward=own_mistakes:reward", "--group_size=2"
    with pytest.raises(FileNotFoundError, match="no such file") as found:
        call(*given, "--exact_match=off")
    assert own(found.value) == ["reward"]


def test_so_does_one_in_a_comparison(own, tiny_flags, tmp_path):
    given = [flag for flag in tiny_flags if not flag.startswith("--algorithm")]
    with pytest.raises(ValueError, match="a mistake in update") as found:
        compare.main(["compare", *given, "--algorithms=own_mistakes:in_update", "--seeds=0",
                      f"--output_dir={tmp_path / 'both'}"])  # fmt: skip
    assert own(found.value) == ["update"]


@pytest.mark.parametrize("given", ["--algorithm=own_nowhere:at", "--algorithm=own_mistakes:absent"])
def test_a_name_that_is_not_there_is_one_line(call, own, capsys, given):
    assert call(given) == 2
    said = capsys.readouterr().err
    assert f"error: {given} cannot be loaded: " in said
    assert "Traceback" not in said


def test_what_libraries_raise_of_a_file_is_no_error_of_ones_own():
    import optax

    with pytest.raises(Exception) as found:  # noqa: PT011 - whatever it is
        optax.sgd(0.1).update(None)
    assert endings.passed_own_code(found.value)  # this test is somebody's own code
    inner = found.value.with_traceback(found.value.__traceback__.tb_next)
    assert not endings.passed_own_code(inner)


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells mute it in the background
from fedjax_post.experiments import train
sys.exit(train.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_a_checkpoint(tiny_flags, tmp_path, signum, code):
    run = tmp_path / "run"
    given = *tiny_flags, "--num_rounds=5000", "--checkpoint_every=5000", "--exact_match=off"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *given, f"--output_dir={run}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    records = run / "records.jsonl"
    while not (records.exists() and records.stat().st_size):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"interrupted; to continue: {TRAIN} --output_dir={run}" in said
    assert "Traceback" not in said
    assert "ignored" not in said
    done = len(records.read_text().splitlines())
    assert (run / "checkpoints" / str(done)).is_dir()
    more = f"--output_dir={run}", "--resume", f"--num_rounds={done + 1}"
    assert train.main(["train", *more]) == 0


def test_a_signal_while_the_run_is_prepared(call, monkeypatch, capsys):
    def stop(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train.study, "prepare", stop)
    assert call() == 143
    assert capsys.readouterr().err.endswith("\ninterrupted\n")  # there is nothing to continue


@pytest.mark.heavy
def test_a_signal_in_a_comparison_says_how_it_goes_on(tiny_flags, tmp_path, monkeypatch, capsys):
    progress = fedjax_post.progress

    def bar(rounds, start=0):
        signal.raise_signal(signal.SIGTERM)
        return progress(rounds, start=start)

    monkeypatch.setattr(fedjax_post, "progress", bar)
    given = [flag for flag in tiny_flags if not flag.startswith("--algorithm")]
    where = f"--output_dir={tmp_path / 'both'}"
    assert compare.main(["compare", *given, "--algorithms=fed_avg", "--seeds=0", where]) == 143
    told = capsys.readouterr()
    assert f"0 of them finished, in {tmp_path / 'both'}" in told.out
    assert "the same command with its --output_dir continues" in told.err


@pytest.mark.heavy
@pytest.mark.parametrize("room", [100, 4_000, 12_000])
def test_a_full_disk_is_one_line(call, finished, tmp_path, capsys, room):
    """Flags, records, checkpoints, the adapter, the curve: whichever is the first not to fit."""
    del finished  # read the data set, so that it lies in the cache
    with files_of_at_most(room):
        code = call("--exact_match=off", "--eval_every=0")
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "no room on the disk for what this run writes" in line
    assert f"'{tmp_path / 'run'}'" in line
    assert code == (2 if room == 100 else 1)
    if code == 2:  # before there was a run
        return
    assert f"to continue: {TRAIN} --output_dir={tmp_path / 'run'}" in line
    assert train.main(["train", f"--output_dir={tmp_path / 'run'}", "--resume"]) == 0


@pytest.mark.heavy
@pytest.mark.parametrize("wait", [0.15, 0.4, 0.8, 1.2])
def test_a_signal_while_libraries_are_imported_ends_the_process(tmp_path, wait):
    """Inside a callback of a library Python would ignore it, and the run would go on."""
    mute = "import signal, os, sys; signal.signal(2, signal.default_int_handler); "
    code = (
        mute
        + "os.execv(sys.executable, [sys.executable, '-m', 'experiments.train', *sys.argv[1:]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"--output_dir={tmp_path / 'run'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), said
    assert not (tmp_path / "run" / "records.jsonl").exists()
