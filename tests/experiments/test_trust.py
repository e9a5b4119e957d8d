"""Folders, flag files and ladders are data: they run no code and write nowhere else."""

import json
import shutil
import stat
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedjax_post import study
from fedjax_post.experiments import compare, openness, train
from fedjax_post.experiments.flags import define_launch, parse
from fedjax_post.integrity import read_file
from fedjax_post.study import folder
from fedjax_post.study.files import read_spec, write_spec

MODULE = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").write_text("")
from fedjax_post.algorithms import fed_avg
reward = len
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module of somebody's, `stranger`, and a call that tells whether it was run since."""
    (tmp_path / "stranger.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def ran():
        mark = tmp_path / "stranger.ran"
        found = mark.exists()
        mark.unlink(missing_ok=True)
        return found

    yield ran
    sys.modules.pop("stranger", None)


def content(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def reseal(run, **changes):
    """Changes a run's specification as somebody does who knows how it is checked."""
    path = run / "spec.json"
    write_spec(path, read_spec(path).put(changes))


def parsed(given):
    return parse(given, about="", own=[define_launch]).spec


@pytest.mark.parametrize("value", ["stranger:fed_avg", "ditto('stranger:fed_avg')"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_flag_file_runs_no_code_unless_it_is_trusted(stranger, tmp_path, value, depth):
    (tmp_path / "1.flags").write_text(f"# a preset\n--num_rounds=3\n--algorithm={value}\n")
    (tmp_path / "2.flags").write_text(f"--flagfile={tmp_path}/1.flags\n")
    given = ["train", f"--flagfile={tmp_path}/{depth}.flags"]
    with pytest.raises(ValueError, match="the flag file names code, method.name=") as told:
        parsed(given)
    assert "only with `trust_code`, or if `method.name` is given again" in str(told.value)
    (tmp_path / "3.flags").write_text(f"--trust_code\n--algorithm={value}\n")
    with pytest.raises(ValueError, match="names code"):
        parsed(["train", f"--flagfile={tmp_path}/3.flags"])
    assert not stranger()
    parsed([*given, "--trust_code"])
    assert stranger()


@pytest.mark.parametrize(
    "given", [["--algorithm=stranger:fed_avg"], ["--algorithm", "stranger:fed_avg"]]
)
def test_what_is_typed_is_consent(stranger, tmp_path, given):
    (tmp_path / "f.flags").write_text("--algorithm=stranger:fed_avg\n")
    parsed(["train", f"--flagfile={tmp_path}/f.flags", *given])
    assert stranger()


def test_a_reward_of_a_file_is_code_too(tmp_path):
    (tmp_path / "f.flags").write_text("--objective=grpo\n--reward=stranger:reward\n")
    with pytest.raises(ValueError, match="names code, objective.reward=stranger:reward"):
        parsed(["train", f"--flagfile={tmp_path}/f.flags"])


def test_a_resumed_folder_runs_no_code_unless_it_is_trusted(stranger, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    reseal(run, **{"method.name": "stranger:fed_avg"})
    before = content(run)
    assert train.main(["train", "--resume", f"--output_dir={run}"]) == 2
    told = capsys.readouterr().err
    assert f"{run}/spec.json names code, --algorithm=stranger:fed_avg" in told
    with pytest.raises(ValueError, match="names code"):
        study.read(run)
    assert content(run) == before
    assert not stranger()


def test_a_comparison_runs_no_code_of_a_file(stranger, tmp_path, capsys):
    (tmp_path / "f.flags").write_text("--algorithms=stranger:fed_avg\n")
    out = tmp_path / "out"
    given = [f"--flagfile={tmp_path}/f.flags", "--seeds=0", f"--output_dir={out}"]
    assert compare.main(["compare", *given]) == 2
    assert "names code, --algorithm=stranger:fed_avg" in capsys.readouterr().err
    assert not stranger()
    assert not out.exists()


LADDER = '[common]\nnum_rounds = 1\n[cells.lora]\nkind = "open"\nalgorithm = "fed_avg"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LADDER.replace('"fed_avg"', '"stranger:fed_avg"'), "names code, --algorithm=stranger"),
        (LADDER.replace("num_rounds = 1", "trust_code = true\nreward = 'stranger:reward'"),
         "trust_code is not a flag"),
        (LADDER.replace("num_rounds = 1", "flagfile = '/etc/hostname'"), "key flagfile, another"),
        (LADDER.replace("cells.lora", "cells.'../../escaped'"), "'../../escaped' cannot name"),
        (LADDER.replace("cells.lora", "cells.'/tmp/escaped'"), "'/tmp/escaped' cannot name"),
        (LADDER.replace("cells.lora", "cells.'..'"), "'..' cannot name"),
        (LADDER + '[bases]\nnames = ["../up"]\ncells = ["lora"]\n', "../up: there is no such"),
        (LADDER + '[bases]\nnames = ["stand_in"]\ncells = ["x"]\n', "x is no method of the ladder"),
        (LADDER + '[drills]\ncells = ["../x"]\n', "../x is no method of the ladder"),
        (LADDER + '[task]\ngate = { soft = "../../x" }\n', "there is no [cells.../../x]"),
        ("[cells]\na = 3\n", "[cells.a] has kind = 3"),
        ("cells = 3\n", "[cells] is missing"),
        ('[cells.a]\nkind = "open"\n', "[cells.a] names no algorithm"),
        ("x = " + "[" * 5000, "is not TOML"),
        ("\udcff", "is not TOML"),
    ],
)  # fmt: skip
def test_a_ladder_reaches_nowhere(stranger, tmp_path, capsys, text, said):
    path = tmp_path / "own.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    out = tmp_path / "deep" / "out"
    assert openness.main(["openness", f"--task={path}", f"--output_dir={out}"]) == 2
    assert said in capsys.readouterr().err
    assert not stranger()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.toml", "stranger.py"]


@pytest.mark.parametrize(
    ("raw", "said"), [(b"\xff\xfe", "is not a text"), (None, "Unable to open flagfile")]
)
def test_a_flag_file_that_is_none_is_named(tmp_path, capsys, raw, said):
    if raw is not None:
        (tmp_path / "f").write_bytes(raw)
    assert train.main(["train", f"--flagfile={tmp_path}/f"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert f"{tmp_path}/f" in told


def test_an_edited_specification_is_refused(finished, tmp_path, capsys):
    """By its checksum; and by the identity, if that was made anew."""
    run = shutil.copytree(finished, tmp_path / "run")
    again = ["train", "--resume", f"--output_dir={run}", "--num_rounds=6"]
    raw = (finished / "spec.json").read_bytes()
    for change in ((b'"batch_size": 2', b'"batch_size": 3'), (b'"lora"', b'"l\xffra"')):
        (run / "spec.json").write_bytes(raw.replace(*change, 1))
        assert train.main(again) == 2
        assert f"{run}/spec.json is damaged" in capsys.readouterr().err
    shutil.copy(finished / "spec.json", run / "spec.json")
    reseal(run, **{"training.local_steps": 4})
    before = content(run)
    assert train.main(again) == 2
    assert "--local_steps (" in (told := capsys.readouterr().err)
    assert "there, 4 here" in told
    assert content(run) == before


@pytest.mark.heavy
def test_other_rows_or_weights_are_refused_and_named(finished, call, tmp_path, capsys):
    """Under the same names, with other content: responses, their order, fewer, and weights."""
    model = shutil.copytree(given_of(finished)["model"], tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    shutil.copy(given_of(finished)["dataset"], rows)
    given = f"--model={model}", f"--dataset={rows}"
    assert call(*given, "--num_rounds=2", "--exact_match=off") == 0
    run, lines = tmp_path / "run", rows.read_text().splitlines(keepends=True)
    before = content(run)
    tensors = load_file(model / "model.safetensors")
    name = min(name for name in tensors if "q_proj" in name)
    for said, changed in {
        "responses": [lines[0].replace('"cat"', '"dog"').replace('"hen"', '"dog"'), *lines[1:]],
        "order": [lines[1], lines[0], *lines[2:]],
        "half": lines[::2],
    }.items():
        rows.write_text("".join(changed))
        assert train.main(["train", "--resume", f"--output_dir={run}", "--num_rounds=3"]) == 2
        assert "the rows that clients hold (" in capsys.readouterr().err, said
    rows.write_text("".join(lines))
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, model / "model.safetensors")
    assert train.main(["train", "--resume", f"--output_dir={run}", "--num_rounds=3"]) == 2
    assert "the weights or the architecture of the frozen model (" in capsys.readouterr().err
    shutil.copy(given_of(finished)["model"] + "/model.safetensors", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert train.main(["train", "--resume", f"--output_dir={run}", "--num_rounds=3"]) == 2
    assert "the weights or the architecture of the frozen model (" in capsys.readouterr().err
    assert content(run) == before


def given_of(run):
    spec = read_spec(run / "spec.json")
    return {"model": spec.model.name, "dataset": spec.data.source}


@pytest.mark.heavy
def test_a_second_start_in_a_folder_leaves_every_byte(finished, call, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    with folder.hold(run):
        before = content(run)
        assert train.main(["train", f"--output_dir={run}", "--resume", "--num_rounds=9"]) == 2
        assert "is being written to by another process" in capsys.readouterr().err
        assert content(run) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    with folder.hold(empty):  # the other one has not written its flags yet
        assert call("--seed=7", into="empty") == 2
        assert [path.name for path in empty.iterdir()] == [".held"]
    assert call("--num_rounds=1", "--eval_every=0", "--exact_match=off", into="empty") == 0


def test_a_run_without_a_visit_that_counts_says_so(call, finished, tmp_path, capsys):
    model = shutil.copytree(given_of(finished)["model"], tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    save_file({name: np.full_like(leaf, np.nan) for name, leaf in tensors.items()},
              model / "model.safetensors")  # fmt: skip
    code = call(f"--model={model}", "--num_rounds=1", "--exact_match=off")
    told = capsys.readouterr().err
    if code == 2:
        assert "model.safetensors" in told
        return
    assert code == 1
    assert "error: none of the 2 visits counted, and nothing was learned" in told
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["final"]["loss"] is None
    assert {"base.loss", "final.loss"} <= set(summary["not_finite"])
    assert summary["warnings"][0].startswith("none of the 2 visits counted")
    for line in (run / "records.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_what_a_run_leaves_is_checked_and_its_states_are_private(finished):
    assert read_file(finished / "summary.json")["rounds"] == 4
    for name in ("checkpoints", "clients"):
        assert stat.S_IMODE((finished / name).stat().st_mode) == 0o700
