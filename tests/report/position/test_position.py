"""The report is complete and agrees with the files: every number has a source, gaps are named."""

import base64
import json
import re
import tarfile

import pytest
from ladders import CLOSED, EVIDENCE, GATE, MANUAL, OPEN, cell, ladder, write_ladder, write_run

from fedjax_post.integrity import read_file, seal_file
from fedjax_post.report import position
from fedjax_post.report.markup import Heading, Prose, Table, markdown, page
from fedjax_post.report.position.aspects import matrix
from fedjax_post.report.position.ladder import read_ladder
from fedjax_post.report.position.page import blocks, title_of
from fedjax_post.report.position.rules import UNPROMPTED
from fedjax_post.report.position.tables import reached
from fedjax_post.report.position.verdicts import UNDECIDED, Finding, verdicts

FACTS = {
    "commands": ["python -m experiments.openness --task=kinds"],
    "labels": ["fruit", "bird"],
    "drills": [
        {"drill": "shutdown", "method": "fed_bpt", "can_train": False, "can_serve": False},
        {"drill": "shutdown", "method": "lora", "lost": 0.0, "can_train": True, "can_serve": True},
    ],
    "matrix": {"methods": 50, "EMBEDDINGS": 9, "GRADIENTS": 50},
    "other_bases": {"org/second": {"shares_data": None}},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A folder with a report in it: three cells, and one that was never run."""
    folder = tmp_path_factory.mktemp("ladder")
    write_ladder(folder, [OPEN, CLOSED, MANUAL, cell("bdpl", "closed", [])], **FACTS)
    write_run(folder / "bases" / "org-second" / "lora" / "seed-0", OPEN, OPEN.runs[0])
    return folder, position.write(folder)


def test_ranks_of_labels_have_a_column_where_there_are_any():
    told = OPEN.runs[0]._replace(summary=OPEN.runs[0].summary | {"final": {"accuracy": 0.75}})
    labelled, *_ = reached(ladder([OPEN._replace(runs={0: told}), CLOSED]))
    assert labelled.head[3:5] == ("exact match", "accuracy")
    assert [row[4] for row in labelled.rows] == ["75.0 %", "missing"]
    assert "accuracy" not in reached(ladder([OPEN, CLOSED]))[0].head


def test_a_ladder_is_read_as_it_was_written(report):
    found = read_ladder(report[0])
    kept = {one.method: one for one in found.cells}
    for one in (OPEN, CLOSED, MANUAL):
        for seed, wanted in one.runs.items():
            read = kept[one.method].runs[seed]
            spent = {name: value or 0 for name, value in wanted.spent.items()}
            assert read._replace(curve=[], summary={}) == wanted._replace(spent=spent, summary={})
    assert kept["bdpl"].runs == {}
    assert [one.method for one in found.bases["org/second"]] == ["lora"]
    assert [point.queries for point in kept["fed_bpt"].runs[0].curve] == [5, 10]


def test_a_count_that_is_null_is_none_asked_and_one_that_is_absent_is_missing(tmp_path):
    write_ladder(tmp_path, [OPEN])
    path = tmp_path / "lora" / "seed-0" / "summary.json"
    told = read_file(path) | {"queries": None}
    path.write_text(seal_file({k: v for k, v in told.items() if k != "labels_sent"}))
    spent = read_ladder(tmp_path).cells[0].runs[0].spent
    assert spent == {"queries": 0, "tokens_sent": 0, "labels_sent": None}


def test_counts_with_templates_are_marked(tmp_path):
    exact = cell("bdpl", "closed", [0.5], asked=700.0, queries=10.0)
    exact.runs[0].disclosure["if_hosted"] = 300
    plain = cell("fed_bpt", "closed", [0.5], asked=700.0, queries=1.0)
    write_ladder(tmp_path, [plain, exact])
    position.write(tmp_path)
    text = (tmp_path / "position.md").read_text()
    assert "Too many 'if hosted' for Fed_Bpt: " in text
    assert "| missing | no | 0 |" in text
    assert "| 10 | 0 | 300 |" in text


def test_the_report_names_every_hypothesis_and_what_is_missing(report):
    text = (report[0] / "position.md").read_text()
    for key in (f"H{n}" for n in range(1, 9)):
        assert f"\n### {key}. " in text
    assert "Missing, no finished run: Bdpl." in text
    assert "| Lora | GRADIENTS | open | 81.0 ± 2.5 % | 1 kB | 2 kB |" in text
    assert "python -m experiments.openness --task=kinds" in text
    for words in ("Supported: ", "Not supported: ", "By definition, no evidence: "):
        assert f"\n{words}" in text


def test_missing_controls_and_the_history_of_thresholds_are_shown(report):
    text = (report[0] / "position.md").read_text()
    told = "one client alone, without a federation, for as many steps"
    assert (
        f"| Lora | Lora, untuned | 40.0 ± 0.0 % | +41.0 ± 2.5 points (3 seeds) | {told} |" in text
    )
    assert "Missing controls: the proxy alone" in text
    row = r"\| ceiling \| 0.98 \| score \| [^|]* \| 2026-11-22 \| no \|"
    assert re.search(row, text)


def test_what_is_printed_fits_a_screen(report):
    lines = report[1].splitlines()
    assert any(line.split() == ["Lora", "GRADIENTS", "81.0", "±", "2.5", "%"] for line in lines)
    assert any(line.split()[:2] == ["Bdpl", "LOGITS"] and "missing" in line for line in lines)
    assert sum(line.startswith("H") for line in lines) == 9
    assert len(lines) < 40


def test_the_html_file_needs_no_other(report):
    folder, _ = report
    text = (folder / "position.html").read_text()
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', text)
    names = ["position_tiers.png", "position_queries.png", "position_costs.png"]
    codes = [base64.b64encode((folder / name).read_bytes()).decode() for name in names]
    assert re.findall(r"base64,([^\"]+)\"", text) == codes


def test_nothing_half_written_is_left(report):
    assert not [path for path in report[0].iterdir() if path.name.startswith(".")]


def test_verdicts_are_there_for_programs(report):
    found = json.loads((report[0] / "position.json").read_text())
    assert [entry["key"] for entry in found["hypotheses"]] == [f"H{n}" for n in range(1, 10)]
    assert found["hypotheses"][3]["verdict"] == "by definition"
    assert {one["name"]: one["value"] for one in found["thresholds"]}["margin"] == 0.02
    assert len(found["matrix"]) == 12
    assert found["gate"]["passed"] is True


def tables_of(found, squares=None):
    """The tables of a ladder's page, those of position.md; it needs no pictures."""
    judged = verdicts(found)
    page_of = blocks(found, judged, squares or matrix(found, judged), [])
    return [block for block in page_of if isinstance(block, Table)]


def table_of(found, first, *, squares=None):
    """The table whose first column has this name."""
    tables = tables_of(found, squares)
    return next(table for table in tables if table.head[0] == first)


def test_drills_show_their_rounds_and_their_score_before_the_fault():
    lost = {"lost": [0.1, 0.1], "by_definition": [False, False]}
    rows = [
        {"drill": "changed", "method": "fed_bpt", "before": [0.5, 0.5], "rounds": [8, 8], **lost},
        {"drill": "forgotten", "method": "lora", "before": 0.75, "rounds": 6, **lost},
        {"drill": "withdrawn", "method": "lora", "rounds": [6, 7], **lost},
        {"drill": "shutdown", "method": "lora", **lost, "by_definition": True},
    ]
    table = table_of(ladder([OPEN, CLOSED], drills=rows), "drill")
    column = lambda name: [row[table.head.index(name)] for row in table.rows]
    assert column("rounds") == ["8", "6", "6, 7", "missing"]
    assert column("score before") == ["50.0 ± 0.0 %", "75.0 %", "missing", "missing"]
    used = "measured, for the table of stages"
    assert column("counts") == ["measured", used, "measured", "by definition"]


def test_a_cell_of_the_matrix_points_to_its_hypothesis_instead_of_its_lists():
    found = ladder([OPEN, CLOSED])
    squares = matrix(found, verdicts(found))
    lists = Finding(UNDECIDED, "", [f"number {n}" for n in range(9)], ["a definition"] * 40)
    filled = [s._replace(finding=lists) if s.hypothesis == "H2" else s for s in squares]
    told = {row[0]: row[2] for row in table_of(found, "cell", squares=filled).rows}
    assert told["weights, autonomy"] == "Number 0. Number 1. Number 2. See H2."
    assert told["licence, privacy"] == "No licence enters the ledger of what is disclosed (H5)."
    long = lists._replace(numbers=["x" * 250, "y" * 60])
    cut = [s._replace(finding=long) if s.hypothesis == "H2" else s for s in squares]
    told = {row[0]: row[2] for row in table_of(found, "cell", squares=cut).rows}
    assert told["weights, autonomy"] == f"X{'x' * 249}. See H2."


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.name.partition(".")[0])
def test_no_cell_of_a_table_is_longer_than_a_paragraph(path, tmp_path):
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    tables = tables_of(read_ladder(tmp_path))
    assert len(tables) >= 8
    longest = max((text for t in tables for row in t.rows for text in row), key=len)
    assert len(longest) <= 400, longest


def test_closed_cells_are_not_read_on_a_base_that_cannot_be_prompted(tmp_path):
    write_ladder(tmp_path, [OPEN, CLOSED], gate=GATE | {"soft_prompt_share": 0.1})
    position.write(tmp_path)
    text = (tmp_path / "position.md").read_text()
    assert f"| Fed_Bpt | LOGITS | closed | undecided: {UNPROMPTED} (scored 51.0 ± 2.5 %) |" in text
    assert "| Lora | GRADIENTS | open | 81.0 ± 2.5 % |" in text


def test_a_ladder_with_one_seed_and_nothing_else_is_reported(tmp_path):
    write_ladder(tmp_path, [cell("lora", "open", [0.8])], gate=None, chance=None)
    assert "80.0 %" in position.write(tmp_path)
    text = (tmp_path / "position.md").read_text()
    assert "Majority, the share of the commonest label: missing; chance, one of" in text
    assert not (tmp_path / "position_queries.png").exists()


def test_an_empty_ladder_is_reported_as_empty(tmp_path):
    (tmp_path / "ladder.json").write_text(seal_file({"labels": []}))
    position.write(tmp_path)
    text = (tmp_path / "position.md").read_text()
    assert "Missing: the ladder's cells." in text
    assert "Missing: drills." in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "ladder.json is not JSON"),
        ("[" * 50_000, "ladder.json is not JSON"),
        ("[1]", "ladder.json is not a JSON object but list"),
        ("{}", "ladder.json has no checksum"),
        (seal_file({"cells": [{"method": "x"}]}), "lacks kind, tier"),
        (seal_file({"cells": [3]}), "the cell 3 lacks kind, method, tier"),
        (seal_file({"cells": {"a": 1}}), "cells must be a list, got dict"),
        (seal_file({"chance": 0.25}).replace("0.25", "0.35"), "ladder.json is damaged"),
    ],
)
def test_a_broken_ladder_is_refused(tmp_path, text, told):
    (tmp_path / "ladder.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        position.write(tmp_path)


def test_no_text_becomes_markup(tmp_path):
    blocks = [Heading(1, "a <b> title"), Prose("x*y <z>"), Table(("a|b",), [("not supported",)])]
    text = page(
        "a title", blocks, tmp_path, marked={"not supported": "#111111", "supported": "#222222"}
    )
    assert "<b> title" not in text
    assert "<z>" not in text
    assert ">not supported</b>" in text
    assert "#222222" not in text
    assert "x\\*y \\<z" in markdown(blocks)
    assert "| a\\|b |" in markdown(blocks)


def test_a_run_in_which_no_visit_counted_has_no_score(tmp_path):
    """Its score is that of the start: the method did not run, and did not fail to learn."""
    write_ladder(tmp_path, [OPEN, CLOSED])
    path = tmp_path / CLOSED.method / "seed-1" / "summary.json"
    summary = read_file(path)
    path.write_text(seal_file(summary | {"visits": 8, "dropped_visits": 8}))
    scores = [run.right for run in read_ladder(tmp_path).cells[1].runs.values()]
    assert scores == [0.50, None, 0.51]
    path.write_text(seal_file(summary | {"visits": 8, "dropped_visits": 7}))
    assert None not in [run.right for run in read_ladder(tmp_path).cells[1].runs.values()]


def test_the_title_names_the_data_that_all_runs_have():
    titled = lambda *names: title_of(
        ladder([
            one._replace(runs={0: one.runs[0]._replace(summary={"dataset": name})})
            for one, name in zip((OPEN, CLOSED), names, strict=True)
        ], task="t", model="m")
    )  # fmt: skip
    assert titled("d", "d") == "t on m, d"
    assert titled("d", "e") == titled(None, None) == "t on m"
