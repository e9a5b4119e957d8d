"""The openness program: passports, what can be run, and what would be lost."""

import pytest

from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.core.access import Access
from fedjax_post.experiments import openness
from fedjax_post.openness.read import passport_names
from fedjax_post.study.factories import declared_access


def told(capsys, *flags):
    assert openness.main(["openness", *flags]) == 0
    return capsys.readouterr().out


def of_target(needed):
    """What a method needs of the target; its weights, where a stand-in is made of them."""
    return needed.get("target", Access.WEIGHTS)


def test_every_algorithm_declares_its_access():
    found = declared_access()
    assert set(found) == set(ALGORITHMS)
    assert found["fed_avg"] == {"target": Access.GRADIENTS}
    assert found["fed_k_seed"] == {"target": Access.WEIGHTS}


def test_the_table_has_every_passport(capsys):
    rows = told(capsys, "--passport=all").splitlines()
    assert {row.split()[0] for row in rows[1:-2]} == set(passport_names())


def test_a_passport_says_class_definition_index_and_licence(capsys):
    text = told(capsys, "--passport=llama-3.2")
    assert "Model Openness Framework: class none" in text
    assert "Llama 3.2 Community License is not an open licence" in text
    assert "Open Source AI Definition 1.0: fails" in text
    assert "begins with Llama" in text
    assert "models/Llama-3.2-1B-Instruct.yml (2026-05-11)" in text


def test_a_hosted_model_runs_nothing_that_needs_weights(capsys):
    text = told(capsys, "--what_can_i_run=hosted-api")
    assert "which grants TEXT and FINETUNE: its weights would have to be open" in text
    granted = Access.TEXT | Access.FINETUNE
    needing = [m for m, needed in declared_access().items() if of_target(needed) & ~granted]
    assert "its owner would have to make one and give it out" in text
    refused = [line.split()[0] for line in text.splitlines() if "  no [" in line]
    assert refused == needing


def test_the_matrix_has_a_column_a_model(capsys):
    head = told(capsys, "--what_can_i_run=all").splitlines()[0]
    assert head.split() == ["method", "needs", *passport_names()]


def test_a_downgrade_says_what_is_lost(capsys):
    text = told(capsys, "--what_can_i_run=pythia", "--downgrade=weights")
    needed = declared_access().values()
    trained = Access.DIFFERENTIATE | Access.FINETUNE  # by whoever holds it, or by its host
    kept = [n for n in needed if "emulator" in n or not trained & of_target(n)]
    lost = len(ALGORITHMS) - len(kept)
    assert f"{lost} of {len(ALGORITHMS)} methods lost" in text
    assert "fed_k_seed " not in text
    assert "nothing would be lost" in told(
        capsys, "--what_can_i_run=hosted-api", "--downgrade=LOGITS"
    )


def test_help_lists_the_flags(capsys):
    assert "--what_can_i_run" in told(capsys, "--help")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["give one of them", "there are apertus"]),
        (["--passport=pythia", "--what_can_i_run=pythia"], ["give one of them"]),
        (["--passport=gpt-9"], ["--passport=gpt-9", "there are apertus"]),
        (["--what_can_i_run=gpt-9"], ["--what_can_i_run=gpt-9", "there are apertus"]),
        (["--what_can_i_run=all", "--downgrade=TEXT"], ["--what_can_i_run=all", "there are"]),
        (["--passport=pythia", "--downgrade=TEXT"], ["--downgrade=TEXT", "--what_can_i_run"]),
        (["--what_can_i_run=pythia", "--downgrade=MOST"], ["--downgrade", "MOST", "LOGITS"]),
        (["--pasport=pythia"], ["pasport", "--help lists the flags"]),
        (["pythia"], ["'pythia' is not a flag"]),
        (["--passport=nowhere.toml"], ["nowhere.toml", "there are"]),
        (["--over=runs/a"], ["two ladders or more, got runs/a", "add one"]),
        (["--over=runs/a,runs/b"], ["runs/a/ladder.json is missing; give folders"]),
        (["--over=runs/a,runs/b", "--task=kinds"], ["--over judges", "leave out --task"]),
        (["--over=runs/a,runs/b", "--seeds=0,1"], ["leave out --seeds"]),
    ],
)
def test_bad_input_names_flag_value_and_remedy(flags, words, capsys):
    assert openness.main(["openness", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert all(word in captured.err for word in words)
