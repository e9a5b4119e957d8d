"""Asynchronous runs and telemetry from the command line."""

import json
import shutil

import pytest

from fedjax_post.experiments import train
from fedjax_post.report.records import read_records

TIMES = ("seconds", "tokens_per_second")
SLOW = "--buffer_size=2 --concurrency=3 --client_speeds=lognormal:1"


@pytest.fixture(scope="module")
def buffered(tiny_flags, tmp_path_factory):
    """The folder of a finished asynchronous run."""
    folder = tmp_path_factory.mktemp("buffered") / "run"
    given = [flag for flag in tiny_flags if "cohort_size" not in flag]
    assert train.main(["train", *given, *SLOW.split(), f"--output_dir={folder}"]) == 0
    return folder


def untimed(folder):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_records(folder)]


@pytest.mark.heavy
def test_an_asynchronous_run_says_how_stale_it_was(buffered, capsys):
    records = read_records(buffered)
    assert max(record["staleness_max"] for record in records) >= 1
    summary = json.loads((buffered / "summary.json").read_text())
    assert summary["virtual_seconds"] == sum(record["virtual_seconds"] for record in records)
    watched = {"client_drift", "client_norm", "client_cosine", "effective_rank"}
    assert watched | {"aggregation_error", "staleness_mean"} <= set(summary["telemetry"])
    assert train.main(["train", f"--output_dir={buffered}", "--resume"]) == 0
    table = capsys.readouterr().out
    assert "last round client drift" in table
    assert "seconds on clients' own time" in table


@pytest.mark.heavy
def test_its_flags_continue_it_to_the_same_records(buffered, tmp_path):
    run = shutil.copytree(buffered, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    assert train.main(["train", f"--output_dir={run}", "--resume"]) == 0
    assert untimed(run) == untimed(buffered)


@pytest.mark.heavy
def test_no_telemetry_means_none(call, tmp_path):
    assert call("--telemetry_clients=0", "--num_rounds=1", "--eval_every=0") == 0
    (record,) = read_records(tmp_path / "run")
    assert not {"client_drift", "aggregation_error"} & set(record)
