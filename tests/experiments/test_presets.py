"""Presets: every flag exists and fits the others; small recipes take data of their form."""

import json
import re
from pathlib import Path

import jax
import pytest

from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.experiments import compare, pairs, train
from fedjax_post.experiments.flags import define_launch, parse
from fedjax_post.hub.files import find_folder
from fedjax_post.hub.load import save_model
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import init_model
from fedjax_post.study.resolve import resolve

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "experiments" / "presets"
PRESETS = sorted(FOLDER.glob("*.flags"))
SMALL = [path.stem.removesuffix("_small") for path in PRESETS if path.stem.endswith("_small")]
WHOLE = [path for path in PRESETS if not path.stem.endswith("_small")]
PACKAGED = [path for path in WHOLE if path.stem.endswith("_smollm2")]
# Text that people follow, besides the presets
_OTHERS = [ROOT / "README.md"]
for _name, _kind in (("docs", "md"), ("experiments", "toml"), ("experiments", "yaml")):
    _OTHERS += sorted((ROOT / _name).rglob(f"*.{_kind}"))
# A path of ours, or the bare name of a preset; a program
_NAMED = re.compile(
    r"(?<![\w./-])(?:(?:experiments|docs|fedjax_post|tests|colabs)/[\w./-]*\w\.\w+|\w+\.flags\b)"
    r"(?!\.\w)|(?<=python -m )experiments\.[\w.]*\w"
)
WORDS = ["cat", "dog", "hen", "pig", "cow"]


def lines_of(path):
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def spec_of(*paths):
    """What the flag files describe, with every default filled in."""
    own = [define_launch]
    if any("--algorithms" in path.read_text() for path in paths):
        own = [compare._define]
    line = parse(["", *(f"--flagfile={path}" for path in paths)], about="", own=own)
    return resolve(line.spec)


@pytest.mark.parametrize(
    "path", [path for path in WHOLE if path not in PACKAGED], ids=lambda path: path.stem
)
def test_a_preset_is_an_experiment(path):
    assert spec_of(path).training.rounds > 0


@pytest.mark.heavy
@pytest.mark.smollm2
@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_a_preset_of_the_packaged_model_is_an_experiment(path):
    try:
        find_folder("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert spec_of(path).model.name == "smollm2"


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_is_the_recipe_with_another_model(name):
    """The algorithm, the objective, the adapter's kind and the division of rows are the same."""
    one, other = spec_of(FOLDER / f"{name}.flags"), spec_of(*both(name))
    assert other.model.name == "smollm2"
    same = (
        *("method.name", "method.client_optimizer", "method.client_schedule", "method.uplink"),
        *("method.client_lr_floor", "method.server_lr", "method.server_schedule", "objective"),
        *("method.client_weight", "data.partition", "training.sampling", "privacy"),
        *("adapter.kind", "adapter.targets", "adapter.dropout"),
    )
    for path in same:
        assert one.at(path) == other.at(path), path


def test_every_recipe_has_a_small_one():
    assert len(SMALL) == 7
    assert {f"{name}.flags" for name in SMALL} < {path.name for path in WHOLE}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_states_its_command_and_each_flag_once(path):
    head = path.read_text().split("\n--")[0]
    assert f"--flagfile=experiments/presets/{path.name}" in head
    names = [re.match(r"--(\w+)=", line)[1] for line in lines_of(path)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", [*PRESETS, *_OTHERS], ids=lambda path: path.name)
def test_files_and_programs_that_are_named_exist(path):
    for name in _NAMED.findall(path.read_text(encoding="utf-8")):
        if name.startswith("experiments."):
            module = ROOT / name.replace(".", "/")
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), name
        else:
            assert (ROOT / name).exists() or (FOLDER / name).exists(), name


def test_an_unknown_flag_of_a_preset_is_refused(tmp_path):
    path = tmp_path / "a.flags"
    path.write_text("--num_rounds=3\n--num_round=4\n")
    with pytest.raises(ValueError, match="num_round"):
        spec_of(path)


def test_a_flag_that_ends_in_a_blank_is_refused_where_absl_would_drop_it(tmp_path):
    inner, outer = tmp_path / "inner.flags", tmp_path / "outer.flags"
    inner.write_text("--template=say {text}: \n")
    outer.write_text(f"# a comment \n--flagfile={inner}\n")
    for path in (inner, outer):
        with pytest.raises(ValueError, match="line 1 ends in a blank.*give --template on the"):
            spec_of(path)


def both(name):
    return FOLDER / f"{name}.flags", FOLDER / f"{name}_small.flags"


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """A Llama with as many layers as the recipes name, and room for their prompts."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "deep", build_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 1, "num_kv_heads": 1}
    config = DecoderConfig(
        vocab_size=len(tokenizer), num_layers=22, head_dim=32, max_positions=512, **shape
    )
    save_model(folder, init_model(config, jax.random.key(0)))
    tokenizer.save_pretrained(folder)
    return folder


def file_for(name, folder):
    """A file of the form that the recipe's data have, with a row for each of 700 numbers."""
    rows = []
    for i in range(700):
        first, second = WORDS[i % 5], WORDS[i % 4]
        row = {"instruction": f"say {first}", "input": second * (i % 2), "output": second}
        if name == "openfedllm_dpo":
            row |= {"chosen": first, "rejected": second + "s"}
        if name == "fs_llm_dolly":
            row["category"] = WORDS[i % 3]
        if name == "ffa_lora_sst2":
            row = {"text": f"say {first}", "label": i % 2}
        rows.append(row)
    content = rows
    if name == "fedllm_bench_aya":
        content = {f"client {k}": rows[k::10] for k in range(10)}
    path = folder / "rows.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.heavy
@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_takes_data_of_its_form(name, deep_folder, tmp_path, capsys):
    if name == "ffa_lora_sst2":
        pytest.importorskip("dp_accounting")
    given = [f"--flagfile={path}" for path in both(name)]
    given += [f"--dataset={file_for(name, tmp_path)}", f"--model={deep_folder}"]
    assert train.main(["train", *given, "--max_length=256", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "0 cut and 0 left out" in shown
    if name == "pfl_alpaca":
        assert "server schedule cosine after 1 of warm-up" in shown


def written(tmp_path, *given):
    assert pairs.main(["pairs", *given, str(tmp_path / "pairs.jsonl")]) == 0
    return [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]


def test_dialogues_become_pairs_of_their_last_answers(tmp_path):
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: sing\n\nAssistant:"
    rows = [
        {"chosen": f"{start} la la", "rejected": f"{start} later"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {"prompt": start, "chosen": " la la", "rejected": " later"}
    assert written(tmp_path, "transcripts", str(source)) == [expected]


def test_every_second_client_prefers_the_opposite(tmp_path):
    rows = [
        {"question": f"q{i}", "answer_matching_behavior": yes, "answer_not_matching_behavior": no}
        for i in range(8)
        for yes, no in [(" Yes", " No") if i % 2 else (" No", " Yes")]
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = written(tmp_path, "opposed", str(source), "--num_clients=2")
    assert [pair["client"][-1] for pair in found] == list("00110011")
    assert [pair["task"] for pair in found] == ["matching", "matching", "opposed", "opposed"] * 2
    assert [pair["chosen"] for pair in found] == [" No", " Yes", " Yes", " No"] * 2
    assert all({pair["chosen"], pair["rejected"]} == {" Yes", " No"} for pair in found)


def test_rows_of_another_form_are_refused(tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    source.write_text('{"question": "q"}\n')
    target = str(tmp_path / "pairs.jsonl")
    assert pairs.main(["pairs", "opposed", str(source), target]) == 2
    assert "has no column 'answer_matching_behavior', which opposed" in capsys.readouterr().err
    assert pairs.main(["pairs", "reversed", str(source), target]) == 2
    assert "reversed is no form of pairs; there are transcripts" in capsys.readouterr().err
    assert not Path(target).exists()
