"""Secure sums from the command line: the same scores, and what the records say of them."""

import json

import pytest

from fedjax_post.report.records import read_records

GIVEN = "--num_rounds=2 --eval_every=0 --uplink=clip(1.0) --telemetry_clients=0 --cohort_size=4"


@pytest.mark.heavy
def test_a_run_scores_the_same_with_masks_and_says_what_they_cost(call, tmp_path, capsys):
    folders = [tmp_path / name for name in ("plain", "masked")]
    for folder, more in zip(folders, ((), ("--secure_sum",)), strict=True):
        assert call(*GIVEN.split(), *more, f"--output_dir={folder}") == 0
    plain, masked = (json.loads((f / "summary.json").read_text()) for f in folders)
    assert masked["final"]["loss"] == pytest.approx(plain["final"]["loss"], abs=1e-5)
    assert plain["secure_sum"] is None
    assert masked["secure_sum"]["threshold"] == 3
    assert masked["secure_sum"]["rounds_not_opened"] == []
    # n = 4: keys, sealed shares, shares; a code of the weight, and a seat of three numbers
    assert masked["bytes_up_per_client"] - plain["bytes_up_per_client"] == 64 + 3 * 86 + 4 * 37 + 16
    assert all(record["sum_opened"] for record in read_records(folders[1]))
    assert "secure     sums of 3 clients or more; 0 of 2 rounds" in capsys.readouterr().out


@pytest.mark.heavy
def test_a_private_run_is_accounted_for_the_noise_of_its_clients(call, tmp_path):
    given = "--num_rounds=2 --eval_every=0 --secure_sum --dp_epsilon=20 --dp_clip=1 --dp_delta=0.1"
    assert call(*given.split(), "--cohort_size=3") == 0
    told = json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]
    assert told["noise_at"] == "shares"
    assert 19 < told["epsilon"] <= 20
    assert "the clients are trusted to add the noise" in told["trust"]
    assert told["sampling"] == "uniform"
    assert "not counted" in told["sampling_accounted"]
