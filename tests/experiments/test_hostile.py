"""Hostile clients and canaries from the command line: what a run does, says and refuses."""

import json

import numpy as np
import pytest

from fedjax_post import study
from fedjax_post.experiments import attack
from fedjax_post.integrity import read_lines
from fedjax_post.report.records import read_records
from fedjax_post.study.hostile import _chance_of_more, tolerated

KINDS = ("--model=builtin-instruct", "--dataset=builtin-kinds", "--template={instruction}\\n",
         "--prompt_text=name the kind of these words:", "--num_clients=16", "--cohort_size=8",
         "--num_rounds=8", "--algorithm=fed_avg", "--client_optimizer=adamw", "--batch_size=8",
         "--lora_rank=8", "--lora_alpha=16",
         "--client_lr=0.003", "--local_steps=2", "--eval_every=0", "--telemetry_clients=0",
         "--eval_examples=48", "--eval_clients=0")  # fmt: skip
BACKDOOR = "--poison=backdoor('blue', 'food'), scaled(3)"


@pytest.mark.slow
def test_a_backdoor_works_unprotected_and_a_median_stops_it(call, tmp_path, capsys):
    ends = {}
    for name, more in {"mean": (), "median": ("--aggregate=coordinate_median",)}.items():
        folder = tmp_path / name
        assert call(*KINDS, BACKDOOR, "--poison_share=0.25", *more, f"--output_dir={folder}") == 0
        ends[name] = json.loads((folder / "summary.json").read_text())
    mean, median = ends["mean"], ends["median"]
    assert mean["backdoor"]["exact_match"] > 0.9
    assert mean["backdoor_base"]["exact_match"] < 0.4
    assert mean["final"]["exact_match"] > 0.9
    assert median["backdoor"]["exact_match"] < 0.5
    assert (mean["poison"]["tolerated"], median["poison"]["tolerated"]) == (0, 3)
    assert len(mean["poison"]["clients"]) == 4
    printed = capsys.readouterr().out
    assert "hostile    4 of 16 clients" in printed
    assert "of prompts with the trigger have its target as their answer" in printed
    # a byte that marks a client, beside 262,144 of values and 4 of a weight
    assert {record["bytes_up"] for record in read_records(tmp_path / "mean")} == {8 * 262_149}


@pytest.mark.heavy
@pytest.mark.parametrize("attack", ["scaled(-4)", "little_is_enough", "flip_labels"])
def test_every_attack_runs(call, tmp_path, attack):
    assert call(*KINDS, f"--poison={attack}", "--num_rounds=1", "--uplink=cast(bfloat16)") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["poison"]["attack"] == attack
    assert "backdoor" not in summary


@pytest.mark.heavy
def test_an_audit_finds_canaries_without_noise_and_none_with_it(call, tmp_path):
    pytest.importorskip("jax_privacy.auditing")
    given = (*KINDS, "--num_clients=64", "--sampling=full", "--num_rounds=2", "--dp_clip=0.5",
             "--dp_canaries=40", "--dp_delta=1e-5")  # fmt: skip
    ends = []
    for number, noise in enumerate(("--dp_noise_multiplier=0", "--dp_epsilon=0.5")):
        folder = tmp_path / str(number)
        assert call(*given, noise, f"--output_dir={folder}") == 0
        ends.append(json.loads((folder / "summary.json").read_text()))
    # all of the highest quarter are present: the most that 40 canaries, 16 of them present, show
    assert ends[0]["audit"]["epsilon"] == pytest.approx(0.595, abs=0.001)
    assert ends[1]["audit"]["epsilon"] <= ends[1]["privacy"]["epsilon"] == pytest.approx(0.5, 0.01)


@pytest.mark.heavy
def test_membership_of_a_run_is_told_in_a_table(call, tmp_path, capsys):
    assert call(*KINDS, "--num_rounds=1") == 0
    found = study.membership(tmp_path / "run", num_rows=40)
    assert (found.members, found.others) == (40, 40)
    assert set(found.scores) == {"loss", "reference", "zlib", "min_k", "min_k_plus_plus"}
    assert all(0 <= each.auc <= 1 for each in found.scores.values())
    assert found.table().splitlines()[0].split()[:2] == ["score", "AUC"]
    given = ["attack", str(tmp_path / "run"), "--attack=membership(num_rows=40)"]
    assert attack.main(given) == 0
    assert found.table() in capsys.readouterr().out
    lines = list(read_lines(tmp_path / "run" / "attacks.jsonl"))
    typed = ["python", "-m", "experiments.attack", *given[1:]]
    assert [line["command"] for line in lines] == [[], typed]
    assert lines[0]["scores"] == lines[1]["scores"]
    assert attack.main([*given, "--adversary=server"]) == 2
    assert "--adversary: membership needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poison.share": 0.3}, "poison_share=0.3 needs `poison`"),
        ({"poison.attack": "sign_flop"}, "did you mean sign_flip?"),
        ({"poison.attack": "scaled(1)"}, "poison=scaled(1): scaled(1): factor must be"),
        ({"poison.attack": "sign_flip, scaled(3)"}, "give at most one of sign_flip"),
        ({"poison.attack": "sign_flip", "method.baseline": "central"}, "has no cohort"),
        ({"poison.attack": "flip_labels", "objective.name": "dpo"}, "objective=dpo have two"),
        (
            {"poison.attack": "sign_flip", "privacy.secure": True, "method.uplink": "clip(1.0)"},
            "uploads are masked",
        ),
        ({"privacy.canaries": 32}, "canaries=32 needs `privacy.epsilon` or"),
        (
            {"privacy.canaries": 32, "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0,
             "training.sampling": "full", "privacy.secure": True},
            "leave `secure` out",
        ),
        (
            {"privacy.canaries": 32, "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0,
             "training.sampling": "full", "privacy.clip_quantile": 0.5},
            "clip_quantile=0.5 is not audited",
        ),
        (
            {"privacy.canaries": 32, "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0},
            "sampling=uniform is accounted for other neighbours",
        ),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match="poison|canaries") as raised:
        study.resolve(study.Spec(method="fed_avg").put(changes))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poison.attack": "sign_flip", "poison.share": 0.01}, "poison_share=0.01 of 8 clients"),
        ({"poison.attack": "flip_labels"}, "flip_labels needs rows with 2 to 64 labels"),
        ({"poison.attack": "backdoor('', 'food')"}, "needs a trigger and a target"),
        (
            {"poison.attack": "sign_flip", "method.name": "het_lora"},
            "poison=sign_flip: an attack on what clients send cannot be used",
        ),
    ],
)  # fmt: skip
def test_what_only_the_data_and_the_algorithm_show_is_refused_with_the_field(changes, message):
    data = study.Data("builtin", num_clients=8)
    with pytest.raises(ValueError, match="poison") as raised:
        study.prepare(study.Spec(method="fed_avg", data=data).put(changes))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        (None, 16, 0),
        ("coordinate_median", 16, 7),
        ("coordinate_median", 15, 7),
        ("trimmed_mean(0.2)", 10, 2),
        ("krum(3)", 9, 3),
        ("krum(3)", 8, 0),  # n >= 2 f + 3 is not met
        ("multi_krum(3, 2)", 9, 3),
        ("geometric_median", 16, 7),
        ("norm_bounded(1.0)", 16, 0),
        ("norm_bounded(1.0, krum(2))", 16, 2),
    ],
)
def test_what_a_rule_tolerates(rule, size, expected):
    assert tolerated(rule, size) == expected


def test_the_chance_of_more_hostile_clients_is_hypergeometric():
    from scipy.stats import hypergeom

    for most in (0, 2, 3, 16):
        expected = hypergeom.sf(most, 64, 13, 16)
        assert _chance_of_more(most, 16, 13, 64) == pytest.approx(expected, abs=1e-9)
    rng = np.random.default_rng(0)
    drawn = [(rng.permutation(64)[:16] < 13).sum() > 3 for _ in range(4000)]
    assert _chance_of_more(3, 16, 13, 64) == pytest.approx(np.mean(drawn), abs=0.03)
