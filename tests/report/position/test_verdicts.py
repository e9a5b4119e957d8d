"""What all hypotheses have in common: the gate, thresholds, corrections and the matrix."""

import pytest
from ladders import CLOSED, GATE, MANUAL, OPEN, attack, control, judge, ladder

from fedjax_post.report.comparison import interval
from fedjax_post.report.position.aspects import ASPECTS, PROPERTIES, matrix
from fedjax_post.report.position.hypotheses import HYPOTHESES
from fedjax_post.report.position.measured import MEASURES
from fedjax_post.report.position.rules import gate, percent
from fedjax_post.report.position.thresholds import THRESHOLDS
from fedjax_post.report.position.verdicts import BY_DEFINITION, UNDECIDED, verdicts


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (GATE, True),
        (GATE | {"manual_prompt": 0.35}, True),  # 15 points above chance, exactly
        (GATE | {"manual_prompt": 0.34}, False),
        (GATE | {"soft_prompt_share": 0.49}, False),
        (GATE | {"passed": False}, False),
        (GATE | {"chance": None}, None),
        (GATE | {"gain": 0.3}, True),
        (GATE | {"gain": 0.01, "soft_prompt_share": 4.0}, None),  # a share of next to nothing
        ({}, None),
    ],
)
def test_the_gate_asks_for_its_two_numbers(given, passed):
    assert gate(ladder([], gate=given)).passed is passed


@pytest.mark.parametrize(
    ("scores", "passed"),
    [((0.6, 0.6, 0.6), True), ((0.49, 0.49, 0.49), False), ((0.9, 0.3, 0.3), False)],
)
def test_a_base_that_the_best_manual_prompt_moves_can_be_prompted(scores, passed):
    """LoRA gains 20 points over the first prompt; the best one is chosen on other seeds."""
    failed = GATE | {"soft_prompt_share": -1.8, "gain": 0.2}
    found = gate(ladder([MANUAL, control("manual", *scores)], gate=failed))
    assert found.passed is passed
    assert "recovers -180.0 % of LoRA's gain, and the best manual prompt" in found.told


def test_every_hypothesis_says_beforehand_what_would_decide_it():
    for one in HYPOTHESES:
        assert one.paper
        assert one.supported
        assert one.refuted
        assert bool(one.measured) == (one.key in MEASURES)
        assert one.measured or one.defined


def test_every_threshold_has_a_dated_history():
    for one in THRESHOLDS:
        dates = [change.date for change in one.history]
        assert dates == sorted(dates)
        assert all(change.reason for change in one.history)
        assert one.value == one.history[-1].value


@pytest.mark.parametrize("key", [one.key for one in HYPOTHESES])
def test_an_empty_ladder_decides_nothing_and_says_why(key):
    finding = judge(key, ladder([], gate=None))
    assert finding.verdict == (UNDECIDED if key in MEASURES else BY_DEFINITION)
    assert finding.why or key not in MEASURES


@pytest.mark.parametrize("key", ["H4", "H5"])
def test_what_is_so_by_definition_is_shown_and_never_supported(key):
    passports = {
        "x": {"tier": "GRADIENTS", "rules": {"use_policy": "a policy"}},
        "builtin": {"tier": "GRADIENTS", "rules": {}},  # a base of ours is not counted
    }
    counts = {"methods": 50, "EMBEDDINGS": 9, "GRADIENTS": 50}
    finding = judge(key, ladder([], passports=passports, matrix=counts))
    assert finding.verdict == BY_DEFINITION
    assert finding.numbers == []
    told = {"H4": "of 50 methods", "H5": "the terms of 1 of 1 models with open weights"}
    assert finding.by_definition[0].startswith(
        told[key].replace("methods", "registered methods run")
    )


def test_several_hypotheses_are_corrected_together():
    rows = [{"drill": "changed", "method": "fed_bpt", "lost": [0.2, 0.2, 0.2]},
            {"drill": "base_update", "method": "lora", "lost": [0.1, 0.1, 0.1],
             "by_definition": False}]  # fmt: skip
    found = ladder([OPEN, CLOSED], attacks=[attack([0.9, 0.91, 0.92])], drills=rows)
    levels = sorted(judge(key, found).level for key in ("H2", "H7"))
    assert levels == [0.025, 0.05]


def test_the_matrix_has_every_cell_with_a_verdict_and_its_basis():
    squares = matrix(ladder([]), verdicts(ladder([])))
    assert [(s.aspect, s.property) for s in squares] == [
        (a, p) for a in ASPECTS for p in PROPERTIES
    ]
    read = [s.finding.verdict for s in squares]
    assert [read.count(v) for v in (UNDECIDED, BY_DEFINITION, "not measured")] == [4, 6, 2]
    assert all(s.claim and (s.finding.told or s.finding.by_definition) for s in squares)


def test_numbers_are_told_with_their_intervals():
    assert percent(interval([0.5, 0.5])) == "50.0 ± 0.0 %"
    assert percent(interval([0.5])) == "50.0 %"
    assert percent(None) == "missing"
    assert MANUAL.runs[0].right == 0.4
