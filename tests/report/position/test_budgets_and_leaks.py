"""Budgets, searches and leaks: what the report makes of a ladder's numbers."""

import json

import pytest
from ladders import CLOSED, MANUAL, OPEN, PROMPTS, cell, control, ladder, write_ladder

from fedjax_post.integrity import read_file, seal_file
from fedjax_post.report.markup import Table
from fedjax_post.report.position.budgets import budget, off_budget, searched, share_of_budget
from fedjax_post.report.position.ladder import accuracy, read_ladder
from fedjax_post.report.position.leaks import leaks
from fedjax_post.report.position.measured import autonomy, updates, utility


def spending(one, tokens):
    """A cell whose runs took some tokens through the model."""
    runs = {
        seed: run._replace(summary=run.summary | {"model_tokens": tokens, "train_seconds": 60.0})
        for seed, run in one.runs.items()
    }
    return one._replace(runs=runs)


def tables(blocks):
    return [block for block in blocks if isinstance(block, Table)]


@pytest.mark.parametrize(
    ("tokens", "differs"), [(900, False), (1140, False), (1160, True), (0, True)]
)
def test_a_cell_off_the_budget_is_marked(tokens, differs):
    found = ladder(
        [
            *(spending(OPEN, tokens), spending(CLOSED, 1000), spending(MANUAL, 0)),
            *(spending(control("central", 0.8), tokens), spending(PROMPTS[0], 0)),
        ],
        budget=1000,
    )
    assert share_of_budget(found, found.cells[0]) == tokens / 1000
    assert [one.method for one in off_budget(found)] == (["lora", "central"] if differs else [])
    (table,) = tables(budget(found))
    assert ("differs" in table.rows[0][3]) == differs
    assert "differs" not in table.rows[2][3]  # a baseline needs no budget
    assert any("spending differs" in line for line in utility(found).numbers) == differs


def test_without_a_budget_nothing_is_marked():
    found = ladder([spending(OPEN, 5), CLOSED])
    assert off_budget(found) == []
    assert "No budget was stated" in budget(found)[0].text


def test_longer_runs_are_a_second_column():
    cells = [spending(OPEN, 100), spending(CLOSED, 100)]
    found = ladder(cells, budget=100, longer={"times": 10})
    assert "at 10 times the budget" not in tables(budget(found))[0].head  # none has finished
    more = spending(cell("lora", "open", (0.9,)), 980)
    (table,) = tables(budget(found._replace(longer={"lora": more})))
    column = table.head.index("at 10 times the budget")
    assert [row[column] for row in table.rows] == ["90.0 %, 9.8 times the tokens", "not run"]


def test_a_search_is_told_with_all_its_trials():
    alone = control("one_client", 0.6, name="alone")
    tried = [{"client_lr": 0.1}, {"client_lr": 0.2}]
    record = {"lora": {"tried": tried, "scores": [0.5, 0.75], "chosen": 1}}
    prose, table = searched(
        ladder([OPEN, CLOSED, alone, *PROMPTS], search={"seed": 9, "trials": 2, "cells": record})
    )
    assert table.rows == [
        ("Lora", "client_lr 0.2", "75.0 %", "client_lr 0.1: 50.0 %; client_lr 0.2: 75.0 %")
    ]
    assert "seed 9" in prose.text
    assert prose.text.endswith("Not searched: Fed_Bpt, Alone.")  # a prompt by hand has no settings
    assert "No settings were searched" in searched(ladder([OPEN]))[0].text


def attack(protection, recovered):
    row = {"attack": "dager", "method": "lora", "wire": "own", "tokens": [20, 20, 20]}
    return row | {"protection": protection, "recovered": recovered, "guess": [0.1, 0.1, 0.1]}


def test_protected_wires_are_shown_and_decide_nothing():
    strong, none = [0.9, 0.91, 0.92], [0.1, 0.1, 0.1]
    found = ladder([OPEN, CLOSED], attacks=[attack("none", strong), attack("noise", none)])
    assert len(updates(found).contrasts) == 1
    (table,) = tables(leaks(found))
    assert [row[0] for row in table.rows] == ["host of the target", "server", "server"]
    assert table.rows[0][5:7] == ("700", "all")
    assert updates(ladder([OPEN], attacks=[attack("noise", strong)])).lacking == "no attack was run"


def test_unlearning_is_no_fault():
    lost = {"lost": [0.3, 0.3, 0.3], "by_definition": [False] * 3}
    rows = [
        {"drill": "changed", "method": "fed_bpt"} | lost,
        {"drill": "forgotten", "method": "lora"} | lost,
    ]
    assert "no drill that can hurt" in autonomy(ladder([OPEN, CLOSED], drills=rows)).lacking


def test_a_ladder_may_be_compared_by_the_rank_of_labels(tmp_path):
    write_ladder(tmp_path, [OPEN, CLOSED], measure="accuracy")
    path = tmp_path / "lora" / "seed-0" / "summary.json"
    told = read_file(path)
    told["final"] |= {"accuracy": 0.125}
    path.write_text(seal_file(told))
    found = read_ladder(tmp_path)
    assert found.cells[0].runs[0].right == 0.125
    assert found.cells[0].runs[1].right is None  # exact match does not stand in for it
    assert accuracy(found.cells[0]) is None
    content = json.loads((tmp_path / "ladder.json").read_text())
    content.pop("sha256", None)
    (tmp_path / "ladder.json").write_text(seal_file(content | {"measure": "loss"}))
    with pytest.raises(ValueError, match="measure='loss' must be one of exact_match, accuracy"):
        read_ladder(tmp_path)


def test_an_interval_of_controls_needs_no_budget():
    found = ladder([OPEN, CLOSED, *PROMPTS, control("proxy", 0.4, 0.4, 0.4), cell("x", "open", [])])
    assert len(tables(budget(found))[0].rows) == 2 + len(PROMPTS) + 1
