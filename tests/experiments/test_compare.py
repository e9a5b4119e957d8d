"""Laws of a comparison: ordinary runs, none twice, and figures that come from their files."""

import json
import shutil

import numpy as np
import pytest

from fedjax_post.experiments import compare, sweep
from fedjax_post.report.records import read_records
from fedjax_post.study import cells

LINKS = "uplink=error_feedback(top_k(0.5), cast(bfloat16))"
LORA = "ffa_lora", "fed_sa_lora"
GIVEN = (
    f"--algorithms=fed_avg:{LINKS},ffa_lora:client_lr=0.3,fed_sa_lora:score_personal=true",
    "--seeds=0,1",
    "--num_rounds=2",
)
FOLDERS = (
    "fed_avg-uplink=error_feedback-top_k-0.5---cast-bfloat16",
    "ffa_lora-client_lr=0.3",
    "fed_sa_lora-score_personal=true",
)


@pytest.fixture(scope="module")
def common(tiny_flags):
    kept = [flag for flag in tiny_flags if "--algorithm" not in flag]
    return [*kept, "--exact_match=off", "--eval_every=0", "--eval_clients=2"]


@pytest.fixture(scope="module")
def compared(common, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparisons") / "compared"
    assert compare.main(["compare", *common, *GIVEN, f"--output_dir={folder}"]) == 0
    return folder


@pytest.mark.heavy
def test_figures_are_those_of_the_runs(compared):
    content = json.loads((compared / "comparison.json").read_text())
    assert [row["algorithm"].split(":")[0] for row in content["rows"]] == ["fed_avg", *LORA]
    for row, folder in zip(content["rows"], FOLDERS, strict=True):
        runs = [compared / folder / f"seed-{seed}" for seed in (0, 1)]
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        losses = [(s.get("personal") or s["final"])["loss"] for s in summaries]
        assert row["loss"]["mean"] == pytest.approx(np.mean(losses))
        # t of one degree of freedom is tan(0.475 pi)
        half = np.tan(0.475 * np.pi) * np.std(losses, ddof=1) / np.sqrt(2)
        assert row["loss"]["half"] == pytest.approx(half, rel=1e-3)
        sent = [sum(record["bytes_up"] for record in read_records(run)) for run in runs]
        assert row["bytes_up"] == {"mean": sent[0], "half": 0}
    assert ["personal" in json.loads((compared / f / "seed-0/summary.json").read_text())
            for f in FOLDERS] == [False, False, True]  # fmt: skip


@pytest.mark.heavy
def test_the_same_command_repeats_no_run_and_more_seeds_may_join(
    compared, common, tmp_path, monkeypatch
):
    folder = shutil.copytree(compared, tmp_path / "compared")
    started = []
    run_one = cells.carry_out
    monkeypatch.setattr(cells, "carry_out", lambda job: started.append(job) or run_one(job))
    assert compare.main(["compare", *common, *GIVEN, f"--output_dir={folder}"]) == 0
    assert started == []
    assert (folder / "comparison.csv").read_text() == (compared / "comparison.csv").read_text()
    more = (
        f"--algorithms=fed_avg:{LINKS}",
        "--seeds=0,1,2",
        "--num_rounds=2",
        f"--output_dir={folder}",
    )
    assert compare.main(["compare", *common, *more]) == 0
    assert [job.directory for job in started] == [folder / FOLDERS[0] / "seed-2"]
    table = (folder / "comparison.md").read_text().splitlines()
    assert len([line for line in table if line.startswith("| fed_avg:")]) == 1


@pytest.mark.heavy
def test_an_interrupted_comparison_goes_on(compared, common, tmp_path, monkeypatch, capsys):
    """What the first call lacks is one run of those with the second seed."""
    folder = shutil.copytree(compared, tmp_path / "cut")
    shutil.rmtree(folder / FOLDERS[0] / "seed-1")
    for left in folder.glob("comparison.*"):
        left.unlink()
    given = ["compare", *common, *GIVEN, f"--output_dir={folder}"]
    real = cells.carry_out

    def cut(job):
        if job.spec.seed == 1:
            raise KeyboardInterrupt
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "carry_out", cut)
        assert compare.main(given) == 130
        assert "the same command" in capsys.readouterr().err
    assert compare.main(given) == 0
    assert (folder / "comparison.csv").read_text() == (compared / "comparison.csv").read_text()
    assert (folder / "comparison.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--algorithms=fed_avg,fed_avgg", "--algorithm=fed_avgg is no algorithm; did you mean"),
        ("--algorithms=", "--algorithms is empty; give some"),
        ("--algorithms=fed_avg,fed_avg", "--algorithms has fed_avg twice"),
        ("--algorithms=fed_avg:mu=1", "--mu=1.0: --algorithm=fed_avg does not take it"),
        ("--algorithms=fed_avg:aggregate=krum(1),flora:uplink=top(1)", "top is unknown; did you"),
        ("--algorithms=fed_avg,lora_fair:aggregate=krum(1)", "--aggregate=krum(1): another"),
        ("--algorithms=fed_avg --seeds=0,x", "--seeds=0,x must be whole numbers"),
        ("--algorithms=fed_avg --seed=3", "--seed is set by another flag of this program"),
        ("--algorithms=fed_avg --cohort_sise=3", "did you mean --cohort_size"),
    ],
)
def test_bad_input_is_refused_before_any_run(common, tmp_path, capsys, monkeypatch, given, said):
    monkeypatch.setattr(cells, "carry_out", lambda job: pytest.fail("a run began"))
    folder = tmp_path / "none"
    assert compare.main(["compare", *common, *given.split(), f"--output_dir={folder}"]) == 2
    assert said in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.heavy
def test_a_folder_of_another_comparison_is_refused(compared, common, capsys):
    given = [*GIVEN[:2], "--num_rounds=3", f"--output_dir={compared}"]
    assert compare.main(["compare", *common, *given]) == 2
    assert "--num_rounds" in (said := capsys.readouterr().err)
    assert "differs from the run in" in said


@pytest.mark.heavy
def test_a_sweep_runs_every_combination(common, tmp_path, capsys):
    given = [*common, "--algorithm=fed_avg", "--num_rounds=1", f"--output_dir={tmp_path}"]
    grid = "--grid=client_lr=0.1,0.3", "--grid=uplink=sign(),cast(bfloat16)"
    assert sweep.main(["sweep", *given, *grid]) == 0
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["algorithm"] for row in content["rows"]] == [
        f"client_lr={lr},uplink={link}"
        for lr in (0.1, 0.3)
        for link in ("sign()", "cast(bfloat16)")
    ]
    for run in tmp_path.glob("*/seed-0/summary.json"):
        settings = json.loads(run.read_text())["settings"]
        assert f"client_lr={settings['method.client_lr']}" in run.parent.parent.name
    capsys.readouterr()
    assert sweep.main(["sweep", *given]) == 2
    assert "--grid is empty; give what varies" in capsys.readouterr().err
