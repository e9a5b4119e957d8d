"""Attacks from the command line: messages are recorded, attacked, and the guesses are scored."""

import pytest

from fedjax_post import study
from fedjax_post.experiments import attack
from fedjax_post.integrity import read_lines
from fedjax_post.simulate import recording

GIVEN = "--num_rounds=2 --eval_every=0 --cohort_size=3 --client_optimizer=sgd --record_wire=0:2"


def run(tmp_path, *flags):
    return attack.main(["attack", str(tmp_path / "run"), *flags])


@pytest.mark.heavy
def test_a_recorded_run_is_attacked_and_scored_by_each_adversary(call, tmp_path, capsys):
    assert call(*GIVEN.split(), "--algorithm=ffa_lora") == 0
    assert run(tmp_path) == 0
    assert run(tmp_path, "--attack=utr(words=8, width=2)", "--adversary=participant") == 0
    assert "ROUGE-1" in capsys.readouterr().out
    lines = list(read_lines(tmp_path / "run" / "attacks.jsonl"))
    assert [(line["attack"], line["adversary"]) for line in lines] == [
        *[("dager", "server")] * 6,
        ("utr", "participant"),
    ]
    assert all(line["rows"] > 0 for line in lines)
    assert run(tmp_path, "--attack=dagger") == 2
    assert run(tmp_path, "--num_rounds=3") == 2
    assert "--attack=dagger" in (told := capsys.readouterr().err)
    assert "--num_rounds: the run has its settings already" in told


@pytest.mark.heavy
def test_under_secure_sums_an_attack_sees_one_sum_for_each_round(call, tmp_path):
    more = "--algorithm=fed_avg --secure_sum --uplink=clip(1.0) --telemetry_clients=0"
    assert call(*GIVEN.split(), *more.split()) == 0
    kinds = [[m.kind for m in messages] for _, messages in recording.read(tmp_path / "run")]
    assert kinds == [[recording.DOWN, recording.SUM]] * 2
    seen = study.see(tmp_path / "run").seen
    assert [len(sent.clients) for sent in seen.sent] == [3, 3]


@pytest.mark.heavy
def test_what_cannot_be_recorded_is_refused_before_anything_is_read(call, tmp_path, capsys):
    for flags, what in (
        ("--record_wire=2:1", "--record_wire=2:1"),
        ("--record_wire_clients=1", "--record_wire"),
        ("--record_wire=0:1 --baseline=local", "--record_wire=0:1"),
        ("--record_wire=9:12 --num_rounds=2", "--record_wire=9:12"),
    ):
        assert call(*flags.split()) == 2
        assert what in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
