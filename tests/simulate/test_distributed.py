"""Two processes under `jax.distributed`, of two devices each, compute what one process does."""

import json
import os
import pickle
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import fedjax_post as fp
from fedjax_post.simulate.cohort import draw
from fedjax_post.simulate.personal import read_clients
from tests.simulate import layouts

ROUNDS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the two processes ran; a run of one process for them to continue lies there first."""
    folder = tmp_path_factory.mktemp("pair")
    scaffold(2, directory=folder / "went on")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "NPROC": "8",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "-m", "tests.simulate.pair"]
    pair = [
        subprocess.Popen(
            [*command, str(number), "2", str(port), str(folder)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], "\n".join(s[-3000:] for s in said)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each process found."""
    return [pickle.loads((folder / f"found-{number}").read_bytes()) for number in range(2)]


@pytest.fixture(scope="module")
def straight():
    """States of one process on one device, after each round."""
    return [jax.device_get(state) for state, _ in scaffold(ROUNDS + 2)]


def scaffold(rounds, **plan):
    return layouts.play(layouts.make_algorithms()["scaffold"], rounds, **plan)


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-6)


@pytest.mark.heavy
def test_two_processes_are_one(found, straight):
    for each in found:
        assert_close(straight[ROUNDS - 1], each["fresh"][0])


@pytest.mark.heavy
def test_records_are_those_of_one_process_and_written_once(found, folder):
    expected = [record for _, record in scaffold(ROUNDS)]
    timed = {"seconds", "tokens_per_second", "padding"}
    for each in found:
        for line, record in zip(expected, each["fresh"][1], strict=True):
            assert line.keys() == record.keys()
            for key in line.keys() - timed:
                assert record[key] == pytest.approx(line[key], rel=1e-5)
    lines = (folder / "fresh" / "records.jsonl").read_text().splitlines()
    kept = [{k: v for k, v in json.loads(line).items() if k != "crc32"} for line in lines]
    assert kept == list(found[0]["fresh"][1])


@pytest.mark.heavy
def test_each_process_prepares_its_own_lanes(found):
    """Chunks have 8 lanes, the first 4 of them the first process's."""
    for number, each in enumerate(found):
        mine = slice(4 * number, 4 * number + 4)
        cohorts = [draw(fp.uniform(6), 10, seed=0, round=r)[mine] for r in range(ROUNDS)]
        expected = np.concatenate(cohorts).tolist()
        assert each["visits"][-len(expected) :] == expected
        assert set(each["visits"][: -len(expected)]) <= {0}  # whose shapes are looked at first


@pytest.mark.heavy
def test_a_state_lies_with_its_owner(folder):
    """Client i with process i mod 2, each in files of its own."""
    seen = set().union(*(draw(fp.uniform(6), 10, seed=0, round=r) for r in range(ROUNDS)))
    for part in range(2):
        (index,) = (folder / "fresh" / "clients" / f"{part}-of-2").glob("index-*.bin")
        entries = np.fromfile(index, [("client", "<i8"), ("slot", "<i8"), ("crc", "<u4")])
        ids = 2 * entries["client"] + part
        assert set(ids) == {i for i in seen if i % 2 == part}


@pytest.mark.heavy
def test_one_process_goes_on_where_two_stopped(folder, straight):
    rest = scaffold(ROUNDS + 2, directory=folder / "fresh", resume=True)
    assert len(rest) == 2
    assert_close(straight[-1], rest[-1][0])
    held = read_clients(
        folder / "fresh",
        layouts.make_algorithms()["scaffold"],
        layouts.MODEL,
        layouts.make_clients(),
        params=layouts.PARAMS,
    )
    seen = set().union(*(draw(fp.uniform(6), 10, seed=0, round=r) for r in range(ROUNDS + 2)))
    assert held.client_ids.tolist() == sorted(seen)


@pytest.mark.heavy
def test_two_processes_go_on_where_one_stopped(found, straight):
    for each in found:
        assert [record["round"] for record in each["went on"][1]] == [2, 3]
        assert_close(straight[ROUNDS - 1], each["went on"][0])


@pytest.mark.heavy
def test_both_refuse_a_folder_that_holds_a_run(found):
    for each in found:
        assert "holds another run" in each["refused"]


@pytest.mark.heavy
def test_a_model_is_split_within_each_process(found):
    """Error feedback over clients:2,model:2, and what is deployed, read by both."""
    algorithm = layouts.make_algorithms()["top_k"]
    state = layouts.play(algorithm)[-1][0]
    tokens, logits = layouts.deployed(algorithm, state)
    for each in found:
        assert_close(jax.device_get(state), each["top_k"][0])
        np.testing.assert_array_equal(each["deployed"][0], tokens)
        np.testing.assert_allclose(each["deployed"][1], logits, atol=1e-4)
