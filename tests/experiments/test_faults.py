"""The program of drills: losses of an open and a closed method, as rows and as files."""

import json
from pathlib import Path

import pytest

from fedjax_post.experiments import drills
from fedjax_post.study import faults, licence
from fedjax_post.study.autonomy import DRILLS, EXCLUSIONS, HELD, SHUT_OUT

CLOSED = "manual_prompt:adapter=text_prompt:prompt_text=say"  # quick to compile
OF_HOLDERS = (*HELD, "forgotten")  # that can hurt whoever holds the weights
SEARCH = "fed_bpt:adapter=soft_prompt:prompt_length=2:search_dim=2:generations=1:num_points=2"
SMALL = ("--lora_rank=2", "--cohort_size=2", "--batch_size=2", "--eval_batch_size=4")


@pytest.fixture(scope="module")
def command(tiny_folder, tiny_rows, tmp_path_factory):
    directory = tmp_path_factory.mktemp("drills")
    return [
        *("drills", f"--methods=fed_avg,{CLOSED}", f"--model={tiny_folder}"),
        *(f"--dataset={tiny_rows}", "--heldout_fraction=0.25", "--template={instruction} ->"),
        *("--labels=cat,dog,hen,pig,cow", "--num_rounds=2", "--local_steps=1", *SMALL),
        f"--drills=shutdown,changed,refused,excluded_price,artefact,{','.join(OF_HOLDERS)}",
        *("--least_memory=0.001", "--most_memory=0.01"),
        *("--data_licence=CC-BY-4.0", "--passport=llama-3.1", f"--output_dir={directory}"),
    ]


@pytest.fixture(scope="module")
def found(command):
    """Rows by drill and method."""
    assert drills.main(command) == 0
    return {(row["drill"], row["method"]): row for row in rows_of(command)}


def rows_of(command):
    path = Path(command[-1].removeprefix("--output_dir=")) / "drills.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


@pytest.mark.heavy
def test_a_method_that_holds_its_weights_loses_nothing(found):
    for (drill, method), row in found.items():
        if method == "fed_avg" and not drill.startswith(OF_HOLDERS):
            assert row["lost"] == [0.0], drill
            assert row["can_train"]
            assert row["can_serve"]
            assert row["by_definition"] == [True], drill


@pytest.mark.heavy
def test_whoever_holds_the_weights_can_lose_and_it_is_measured(found):
    for name in OF_HOLDERS:
        if name != "excluded_memory":
            assert found[name, "fed_avg"]["by_definition"] == [False], name
    nobody = found["excluded_memory", "fed_avg"]  # its clients have less than the weights take
    assert nobody["clients"] == [[0, 1, 2, 3]]
    assert not nobody["can_train"]
    assert len(found["withdrawn", "fed_avg"]["clients"][0]) == 2  # of 4, 2 of which came first
    assert "European Union" in found["excluded_weights_licence", "fed_avg"]["note"]
    for name in HELD:
        assert found[name, CLOSED]["lost"] == [0.0]
        assert found[name, CLOSED]["by_definition"] == [True]
    renewed, updated = found["base_renewed", "fed_avg"], found["base_update", "fed_avg"]
    assert [renewed[k] for k in ("at_fault", "at_change")] == [
        updated[k] for k in ("at_fault", "at_change")
    ]
    assert renewed["model_tokens_again"][0] > 0
    assert renewed["private_tokens_again"] == renewed["labels_again"] == [0]
    assert found["forgotten", CLOSED]["by_definition"] == [False]  # a prompt is learned again


@pytest.mark.heavy
def test_a_closed_method_ends_with_its_provider(found):
    row = found["shutdown", CLOSED]
    assert not row["can_train"]
    assert not row["can_serve"]
    assert row["after"] == [0.0]
    assert row["by_definition"] == [True]
    assert found["changed", CLOSED]["by_definition"] == [False]
    assert len(row["at_fault"]) == 1
    assert not found["artefact", CLOSED]["can_serve"]
    for name in ("refused", "excluded_price"):
        assert found[name, CLOSED]["can_train"]
        assert not found[f"{name}{SHUT_OUT}", CLOSED]["can_train"]
    assert found["refused", CLOSED]["clients"] == [[0]]
    assert found["excluded_price", CLOSED]["clients"][0] != []


@pytest.mark.heavy
def test_the_artefact_has_files_and_terms(found, command):
    made = found["artefact", "fed_avg"]
    assert made["artefact_bytes"][0] > 0
    terms = {entry["about"]: entry["says"] for entry in made["terms"][0]}
    assert terms["what they must be called"] == "begins with Llama"
    assert terms["licence of the clients' data"].startswith("CC-BY-4.0 (open)")
    prompt = {entry["about"] for entry in found["artefact", CLOSED]["terms"][0]}
    assert "passing a prompt on" in prompt


@pytest.mark.heavy
def test_the_same_command_goes_on_and_says_the_same(found, command):
    assert drills.main([*command, "--drills=refused", "--methods=fed_avg"]) == 0
    rows = rows_of(command)
    assert rows
    for row in rows:
        assert row == found[row["drill"], row["method"]]


@pytest.mark.slow
def test_every_drill_has_rows(found, command, tmp_path):
    other = [*command, "--drills=all", f"--methods=fed_avg,{SEARCH}", f"--output_dir={tmp_path}"]
    assert drills.main(other) == 0
    rows = rows_of(other)
    own = ("refused", *EXCLUSIONS, "excluded_memory", "excluded_weights_licence", "withdrawn")
    assert {row["drill"] for row in rows} == {*DRILLS, *(f"{name}{SHUT_OUT}" for name in own)}
    for row in rows:
        if (row["drill"], row["method"]) in found:
            assert row["before"] == found[row["drill"], row["method"]]["before"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--drills=flood", "--drills=['flood']: give some of shutdown"),
        ("--at_round=2", "--at_round=2 must be from 1 to 1"),
        ("--excluded_clients=4", "--excluded_clients=4 must be from 1 to 3"),
        ("--local_steps=2", "--local_steps=2 differs from the run in"),
        ("--rate_limit=2", "--rate_limit=2 differs from the drills in"),
        ("--methods=", "--methods is empty"),
        ("--nothing", "--nothing is not a flag"),
    ],
)
def test_bad_input_is_refused(found, command, given, message, capsys, tmp_path):
    fresh = [] if given in ("--local_steps=2", "--rate_limit=2") else [f"--output_dir={tmp_path}"]
    assert drills.main([*command, *fresh, given]) == 2
    assert message in capsys.readouterr().err


def test_a_base_without_a_passport_has_no_terms():
    (entry,) = licence.terms("somebody/else")
    assert "no passport for somebody/else" in entry["says"]


def test_settings_put_the_fault_in_the_middle():
    assert faults.fill_settings(faults.Settings(), 9).at_round == 4
