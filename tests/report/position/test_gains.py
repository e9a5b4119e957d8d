"""Gains: paired differences of each method from its start and from what others reach."""

import tarfile

import numpy as np
import pytest
from ladders import CENTRAL, DOCS, EVIDENCE, MANUAL, PROMPTS, cell, control, ladder
from scipy import stats

from fedjax_post.report.position.gains import gains
from fedjax_post.report.position.ladder import read_ladder

LORA = cell("lora", "open", (0.80, 0.85, 0.84), base=0.5)
ALONE = control("one_client", 0.70, 0.60, 0.65)


def rows_of(found, number=0):
    """The rows of a table as dicts by the name of the column, by method."""
    tables = [block for block in gains(found) if hasattr(block, "rows")]
    head, rows = tables[number]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_a_gain_is_paired_and_has_students_interval():
    lora = rows_of(ladder([LORA, ALONE, CENTRAL, MANUAL, *PROMPTS]))["Lora"]
    differences = np.array([0.10, 0.25, 0.19])
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert lora["over one client alone"] == f"+18.0 ± {50 * (high - low):.1f}"
    assert lora["over its start"].startswith("+33.0 ± ")
    assert lora["over LoRA in one place"].startswith("+22.0 ± ")
    assert lora["over the best manual prompt"].startswith("+43.0 ± ")
    assert lora["seeds"] == "0, 1, 2"


def test_a_cell_is_not_compared_with_itself_and_prompts_by_hand_have_no_row():
    found = rows_of(ladder([LORA, ALONE, MANUAL, *PROMPTS]))
    assert set(found) == {"Lora", "One_Client"}
    assert found["One_Client"]["over one client alone"] == ""
    assert found["One_Client"]["over its start"]
    assert "over LoRA in one place" not in found["Lora"]


def test_the_best_manual_prompt_is_that_of_the_search_where_it_was_tried():
    """By the other seeds it would be the second one."""
    first, second = (
        control("manual", *scores, name=name)
        for name, scores in {"one": (0.5, 0.5, 0.5), "two": (0.7, 0.7, 0.7)}.items()
    )

    def gained(**facts):
        return rows_of(ladder([LORA, first, second], **facts))["Lora"][
            "over the best manual prompt"
        ]

    tried = {"seed": 100, "prompts": {"one": 0.6, "two": 0.5}}
    assert gained(search=tried).startswith("+33.0 ± ")
    for earlier in ({}, {"seed": 100}, {"seed": 100, "prompts": {"one": 0.6}}):
        assert gained(search=earlier).startswith("+13.0 ± ")
    says = lambda **facts: gains(ladder([LORA, first, second], **facts))[0].text
    assert "chosen by its score on seed 100, which is not reported." in says(search=tried)
    assert "chosen by the other seeds of the method that it is compared with" in says()


def test_only_seeds_of_both_sides_count():
    two = ALONE._replace(runs={seed: ALONE.runs[seed] for seed in (1, 2)})
    assert rows_of(ladder([LORA, two]))["Lora"]["over one client alone"].startswith("+22.0 ± ")


def test_calibrated_gains_stand_in_a_second_table():
    def with_pmi(one, scores, base):
        runs = {
            seed: run._replace(
                summary=run.summary
                | {"base": {"accuracy_pmi": base}, "final": {"accuracy_pmi": scores[seed]}}
            )
            for seed, run in one.runs.items()
        }
        return one._replace(runs=runs)

    cells = [with_pmi(LORA, (0.6, 0.6, 0.6), 0.58), with_pmi(ALONE, (0.5, 0.5, 0.5), 0.58)]
    found = ladder(cells, measure="accuracy")
    assert rows_of(found)["Lora"]["over its start"].startswith("+33.0 ")
    calibrated = rows_of(found, 1)["Lora"]
    assert calibrated["over its start"] == "+2.0 ± 0.0"
    assert calibrated["over one client alone"] == "+10.0 ± 0.0"


def test_own_rows_stand_apart():
    table = {"rows": "own", "scores": {"exact_match": {"mean_by_clients": 0.9}}}
    runs = {s: r._replace(summary={"clients": {"personal": table}}) for s, r in ALONE.runs.items()}
    found = rows_of(ladder([LORA, ALONE._replace(runs=runs)]))
    assert (found["Lora"]["own rows"], found["One_Client"]["own rows"]) == ("", "90.0 ± 0.0 %")


def test_a_ladder_without_a_run_says_so():
    (said,) = gains(ladder([]))
    assert "Missing" in said.text


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.name.partition(".")[0])
def test_the_page_says_what_lora_gains(path, tmp_path):
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    found = read_ladder(tmp_path)
    if found.facts.get("measure") != "accuracy":
        pytest.skip("its section tells no gains over the start")
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    section = text.partition(f"(evidence/{path.name})")[0].rpartition("\n### ")[2]
    for number in range(2):
        row = rows_of(found, number)["FedAvg of LoRA"]
        for name in ("over its start", "over one client alone", "over the best manual prompt"):
            assert row[name].lstrip("+") in section, (number, name, row[name])
