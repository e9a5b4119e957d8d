"""Laws of the training program: the files of a run, and that it can be interrupted anywhere."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import fedjax_post
from fedjax_post import study
from fedjax_post.algorithms import ALGORITHMS, skeleton
from fedjax_post.experiments import train
from fedjax_post.report.records import read_records
from fedjax_post.study import folder

TIMES = ("seconds", "tokens_per_second")


def untimed(directory):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_records(directory)]


def adapter(directory):
    return load_file(directory / "adapter" / "adapter_model.safetensors")


def assert_same_run(one, other):
    assert untimed(one) == untimed(other)
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_run_leaves_what_the_readme_promises(finished):
    left = {path.name for path in finished.iterdir()}
    assert {"records.jsonl", "spec.json", "summary.json", "learning_curve.png"} <= left
    assert {"holdings.json", "partition.png"} <= left
    assert {"checkpoints", "adapter"} <= left
    assert not [name for name in left if "unfinished" in name]
    summary = json.loads((finished / "summary.json").read_text())
    assert {"loss", "exact_match", "per_task"} <= set(summary["base"]) & set(summary["final"])
    assert set(summary["final"]["per_task"]) == {"even", "odd"}
    records = read_records(finished)
    assert [r["round"] for r in records] == [0, 1, 2, 3]
    assert ["eval_loss" in r for r in records] == [False, True, False, True]
    assert summary["rounds"] == 4
    assert summary["bytes_up"] == sum(r["bytes_up"] for r in records)
    assert summary["bytes_up"] == 4 * 2 * summary["bytes_up_per_client"]
    assert summary["command"].startswith("python -m experiments.train --model=")
    assert summary["inference"] is None  # an open model is asked nothing
    assert summary["emulator_bytes"] is None


@pytest.mark.heavy
def test_what_a_stand_in_costs_is_told_beside_the_wire(call, tmp_path):
    given = ("--model=builtin", "--algorithm=offsite_tuning", "--num_rounds=1", "--eval_every=0")
    assert call(*given, "--local_steps=1", "--eval_examples=2", "--exact_match=off") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    layer = 3 * 128 * 256 + 2 * 128 * 128 + 2 * 128 * 64 + 2 * 128
    # The first and the last of four layers, one of the two between them, embeddings, a norm
    assert summary["emulator_bytes"] == 4 * (3 * layer + 715 * 128 + 128)
    assert summary["inference"] == "client"  # where what it trained is of use


@pytest.mark.heavy
def test_the_specification_repeats_the_run(finished, tmp_path):
    again = tmp_path / "again"
    assert train.main(["train", f"--spec={finished / 'spec.json'}", f"--output_dir={again}"]) == 0
    assert_same_run(finished, again)


@pytest.mark.heavy
def test_a_notebook_gets_the_same_bits_as_the_program(finished, tmp_path):
    job = study.prepare(study.read(finished).spec, directory=tmp_path / "run")
    state = [state for state, _ in job.run()][-1]
    job.export(state, tmp_path / "run" / "adapter")
    assert_same_run(finished, tmp_path / "run")
    summary = json.loads((finished / "summary.json").read_text())
    assert job.score(state) == summary["final"]


@pytest.mark.heavy
def test_a_notebook_goes_on_with_a_run(finished, tmp_path):
    run = study.read(shutil.copytree(finished, tmp_path / "run"))
    assert run.summary["rounds"] == len(run.records) == 4
    job = run.resume()
    assert job.rounds_done == 4
    assert job.score(job.start) == run.summary["final"]
    more = run.resume(rounds=6)
    assert [record["round"] for _, record in more.run()] == [4, 5]
    with pytest.raises(ValueError, match="training.rounds=3.*has 6 rounds"):
        run.resume(rounds=3)


@pytest.mark.heavy
def test_a_run_that_another_process_plays_to_its_end_is_scored_at_its_end(finished, tmp_path):
    spec, run = study.read(finished).spec, tmp_path / "run"
    for _, record in study.prepare(spec, directory=run).run():
        if record["round"] == 1:  # after which there is a checkpoint
            break
    late, other = (study.prepare(spec, directory=run, resume=True) for _ in range(2))
    assert late.rounds_done == 2
    for _ in other.run():
        pass
    summary = study.carry_out(late)
    assert_same_run(finished, run)
    assert summary["final"] == json.loads((finished / "summary.json").read_text())["final"]


@pytest.mark.heavy
def test_a_run_that_has_gone_on_for_more_rounds_is_not_cut_short(finished, tmp_path):
    run = study.read(shutil.copytree(finished, tmp_path / "run"))
    late = run.resume()
    for _ in run.resume(rounds=6).run():
        pass
    with pytest.raises(ValueError, match="training.rounds=4.*has 6 rounds"):
        study.carry_out(late)
    assert study.read(run.directory).spec.training.rounds == 6


def test_a_dry_run_says_what_it_takes_and_writes_nothing(call, tmp_path, capsys):
    assert call("--dry_run") == 0
    shown = capsys.readouterr().out
    for word in ("model ", "clients ", "rows ", "method ", "wire ", "results "):
        assert word in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_a_finished_run_resumed_prints_its_table_again(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    before = untimed(run), json.loads((run / "summary.json").read_text())
    assert train.main(["train", f"--output_dir={run}", "--resume"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (untimed(run), summary["final"]) == (before[0], before[1]["final"])
    shown = capsys.readouterr().out
    for word in ("per client and round", "held out", "exact match", "tokens/s", str(run)):
        assert word in shown


@pytest.mark.heavy
def test_more_rounds_continue_a_run_without_a_schedule(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    assert train.main(["train", f"--output_dir={run}", "--resume", "--num_rounds=6"]) == 0
    assert untimed(run)[:4] == untimed(finished)
    assert [r["round"] for r in read_records(run)] == list(range(6))
    assert study.read(run).spec.training.rounds == 6


class Cut(Exception):
    """Stands for whatever ends a run."""


def cut_by(stop):
    """In place of the progress bar: raises `stop` after round 2, which no checkpoint holds."""

    def bar(rounds, start=0):
        def show(state, record):
            if record["round"] == 2:
                raise stop

        return show

    return bar


@pytest.mark.heavy
@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cut])
def test_a_run_that_was_cut_ends_like_one_that_was_not(
    call, finished, tmp_path, monkeypatch, capsys, stop
):
    with monkeypatch.context() as patch:
        patch.setattr(fedjax_post, "progress", cut_by(stop))
        if stop is KeyboardInterrupt:
            assert call() == 130
            assert f"--output_dir={tmp_path / 'run'} --resume" in capsys.readouterr().err
        else:
            with pytest.raises(Cut):
                call()
    assert len(read_records(tmp_path / "run")) == 2
    assert train.main(["train", f"--output_dir={tmp_path / 'run'}", "--resume"]) == 0
    assert_same_run(finished, tmp_path / "run")


@pytest.mark.heavy
def test_a_run_that_does_not_fit_says_so_and_goes_on_with_less(
    call, finished, tmp_path, monkeypatch, capsys
):
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\n...")
    with monkeypatch.context() as patch:
        patch.setattr(fedjax_post, "progress", cut_by(full))
        assert call() == 1
    said = capsys.readouterr().err
    assert "give --remat or a lower --chunk_size (RESOURCE_EXHAUSTED: Out of memory" in said
    assert "Traceback" not in said
    again = "--resume", "--remat", "--chunk_size=1"
    assert train.main(["train", f"--output_dir={tmp_path / 'run'}", *again]) == 0
    one, other = (read_records(folder)[-1]["loss"] for folder in (finished, tmp_path / "run"))
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize("baseline", ["central", "local"])
def test_reference_points_send_nothing_and_see_the_same_tokens(call, finished, tmp_path, baseline):
    assert call(f"--baseline={baseline}", "--algorithm=fed_adam", "--exact_match=off") == 0
    records = read_records(tmp_path / "run")
    assert [r["num_tokens"] for r in records] == [r["num_tokens"] for r in read_records(finished)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bytes_up"] is None
    assert summary["final"]["loss"] < summary["base"]["loss"]
    assert (tmp_path / "run" / "adapter").exists() == (baseline == "central")


@pytest.mark.heavy
def test_a_copied_file_runs_unregistered(call, tmp_path, monkeypatch, capsys):
    shutil.copy(skeleton.__file__, tmp_path / "my_rules.py")
    monkeypatch.syspath_prepend(tmp_path)
    given = "--algorithm=my_rules:skeleton", "--keep=0.5", "--num_rounds=2", "--exact_match=off"
    assert call(*given) == 0
    assert "my_rules:skeleton: 5 steps" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert stored["method"]["params"] == {"keep": 0.5}
    again = "train", "--resume", f"--output_dir={tmp_path / 'run'}"
    assert train.main([*again]) == 2  # code that a file names
    assert "names code, --algorithm=my_rules:skeleton" in capsys.readouterr().err
    assert train.main([*again, "--trust_code"]) == 0
    assert train.main([*again, "--algorithm=my_rules:skeleton"]) == 0
    (tmp_path / "my_rules.py").write_text((tmp_path / "my_rules.py").read_text() + "\n")
    assert train.main([*again, "--num_rounds=3", "--algorithm=my_rules:skeleton"]) == 2
    assert "code of my_rules (" in capsys.readouterr().err
    assert call(*given, "--mu=1", into="other") == 2
    assert "--algorithm=my_rules:skeleton does not take it" in capsys.readouterr().err


@pytest.mark.heavy
def test_scaffold_steps_by_plain_sgd(call, tmp_path):
    given = "--algorithm=scaffold", "--client_schedule=linear", "--num_rounds=2"
    assert call(*given, "--exact_match=off") == 0
    settings = json.loads((tmp_path / "run" / "summary.json").read_text())["settings"]
    assert settings["method.client_lr"] == 0.5
    assert "method.client_optimizer" not in settings


@pytest.mark.heavy
@pytest.mark.parametrize(
    "given",
    [
        ("--algorithm=fed_yogi", "--client_schedule=cosine", "--client_lr=0.1"),
        ("--algorithm=fed_prox", "--mu=0.1", "--server_optimizer=adam", "--local_epochs=1"),
        ("--adapter=full", "--sampling=poisson", "--dtype=bfloat16", "--client_optimizer=adamw"),
        ("--partition=dirichlet", "--num_clients=2", "--sampling=full"),
        ("--executor=host", "--cohort_size=1", "--lora_targets=o_proj"),
        ("--uplink=clip(1.0), error_feedback(top_k(0.1), cast(bfloat16))", "--aggregate=krum(1)"),
        ("--uplink=ef21(sign)", "--algorithm=fed_adam"),
        ("--objective=grpo", "--group_size=2", "--reward=head", "--grpo_beta=0.1"),
        ("--objective=grpo", "--group_size=2", "--baseline=central"),
        ("--objective=dpo", "--rejected_column=task", "--dpo_beta=0.5"),
        ("--sampling=poisson", "--dp_noise_multiplier=1", "--dp_clip=0.1", "--dp_delta=0.1"),
        ("--sampling=full", "--dp_epsilon=8", "--dp_clip=0.1", "--uplink=cast(bfloat16)"),
        ("--dp_epsilon=8", "--dp_clip=0.1", "--dp_clip_quantile=0.5", "--sampling=poisson"),
        ("--dp_noise_multiplier=1", "--dp_clip=0.1", "--dp_noise_cohort=5000"),
        ("--dp_noise_multiplier=9", "--dp_clip=1", "--dp_noise_at=client", "--aggregate=krum(1)"),
        ("--dp_noise_multiplier=1", "--dp_clip=1", "--dp_noise_at=step", "--algorithm=ffa_lora"),
        ("--algorithm=ditto(fed_prox, mu=0.5)", "--mu=0.1"),
        ("--algorithm=flora", "--aggregate=trimmed_mean(0.2)"),
        ("--algorithm=algorithms.fed_avg:fed_avg_m", "--momentum=0.5", "--partition=iid"),
    ],
    ids=" ".join,
)
def test_flags_reach_the_run(call, tmp_path, given):
    local = () if "--local_epochs=1" in given else ("--local_steps=1",)
    rounds = "--num_rounds=1" if "--executor=host" in given else "--num_rounds=2"
    number = ("--num_clients=3",) if "--partition=iid" in given else ()
    common = rounds, "--eval_every=0", "--exact_match=off"
    assert call(*given, *local, *number, *common) == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_runs_and_exports(call, tmp_path, algorithm):
    given = f"--algorithm={algorithm}", "--num_rounds=2", "--eval_every=0", "--exact_match=off"
    assert call(*given) == 0
    assert any((tmp_path / "run" / "adapter").glob("*.safetensors"))


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path):
    with (
        folder.hold(tmp_path),
        pytest.raises(BlockingIOError, match="written to by another process; wait for it"),
        folder.hold(tmp_path),
    ):
        pass
    with folder.hold(tmp_path):  # and is let go of
        pass
