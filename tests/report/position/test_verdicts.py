"""Each claim can be supported, refuted or left undecided, by symmetric rules."""

import pytest
from ladders import CLOSED, GATE, MANUAL, OPEN, cell, ladder

from fedjax_post.report.comparison import interval
from fedjax_post.report.position.aspects import ASPECTS, PROPERTIES, matrix
from fedjax_post.report.position.claims import MARGIN
from fedjax_post.report.position.rules import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    UNPROMPTED,
    all_of,
    decide,
    gate,
    percent,
)
from fedjax_post.report.position.verdicts import verdicts

FAILED = {"gate": GATE | {"manual_prompt": 0.25}}


def judge(key, found):
    """What H1 to H8 come to, one of them."""
    return next(v.finding for v in verdicts(found) if v.claim.key == key)


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [
        ([0.2, 0.21, 0.22], SUPPORTED),
        ([-0.2, -0.21, -0.22], NOT_SUPPORTED),
        ([0.0, 0.001, -0.001], NOT_SUPPORTED),
        ([0.0, 0.0], NOT_SUPPORTED),
        ([0.3, -0.3, 0.1], UNDECIDED),
        ([0.9], UNDECIDED),
        ([], UNDECIDED),
    ],
)
def test_an_advantage_is_decided_by_its_interval(advantages, expected):
    assert decide(advantages) == expected


def test_the_rule_of_intervals_is_the_one_written_out():
    mean, half = interval([0.01, 0.03])
    assert mean - half < 0 < MARGIN < mean + half
    assert decide([0.01, 0.03]) == UNDECIDED
    assert decide([0.0199, 0.0201]) == SUPPORTED


def test_a_claim_of_several_parts_needs_them_all():
    assert all_of([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert all_of([SUPPORTED, UNDECIDED]) == UNDECIDED
    assert all_of([UNDECIDED, NOT_SUPPORTED]) == NOT_SUPPORTED
    assert all_of([]) == UNDECIDED


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


@pytest.mark.parametrize("key", [f"H{n}" for n in range(1, 9)])
def test_an_empty_ladder_decides_nothing_and_says_what_is_missing(key):
    finding = judge(key, ladder([], gate=None))
    assert finding.verdict == UNDECIDED
    assert finding.numbers


def test_tokens_shown_or_not_is_structural_so_that_one_seed_is_enough():
    seed = [cell("lora", "open", [0.8]), cell("fed_bpt", "closed", [0.5], asked=700.0)]
    finding = judge("H1", ladder(seed))
    assert finding.verdict == SUPPORTED
    assert "1 of 1 closed-side methods show private tokens" in finding.numbers[0]


def test_the_report_says_that_where_inference_runs_decides():
    told = "\n".join(judge("H1", ladder([OPEN, CLOSED])).numbers)
    assert "(LOGITS), inference at client: 0 private tokens left the federation" in told
    assert "had a provider hosted the target, the same run would have shown it 700" in told
    hosted = cell("fed_bpt", "closed", [0.5], asked=900.0, sent=700.0, inference="provider")
    told = "\n".join(judge("H1", ladder([OPEN, hosted])).numbers)
    assert "inference at provider: 700 private tokens left the federation" in told
    assert "held by the clients, the target would have shown nobody the same queries" in told
    assert "Lora (GRADIENTS), which asks no host: 0 private tokens left the federation" in told


@pytest.mark.parametrize(
    ("cells", "facts", "expected"),
    [
        # a closed-side method that asks nothing and gains is a way out
        ([OPEN, CLOSED, cell("fed_pt", "closed", (0.7, 0.71, 0.72), asked=0.0)], {}, NOT_SUPPORTED),
        # ... one that gains nothing is none
        ([OPEN, CLOSED, cell("fed_pt", "closed", (0.4, 0.4, 0.4), asked=0.0)], {}, SUPPORTED),
        # ... with one seed nobody knows, nor on a base that cannot be prompted
        ([OPEN, CLOSED, cell("fed_pt", "closed", [0.7], asked=0.0)], {}, UNDECIDED),
        ([OPEN, CLOSED, cell("fed_pt", "closed", (0.7, 0.71, 0.72), asked=0.0)], FAILED, UNDECIDED),
        ([OPEN, cell("fed_pt", "closed", (0.4, 0.4, 0.4), asked=0.0)], {}, NOT_SUPPORTED),
        # an open method that shows private text
        ([cell("lora", "open", (0.8, 0.8), sent=5.0), CLOSED], {}, NOT_SUPPORTED),
        # a count that is not there
        ([OPEN, CLOSED, cell("fed_bbpt", "closed", (0.7, 0.7))], {}, UNDECIDED),
        ([OPEN], {}, UNDECIDED),
    ],
)
def test_privacy_is_judged_both_ways(cells, facts, expected):
    assert judge("H1", ladder(cells, **facts)).verdict == expected


def drill(method, **told):
    return {"drill": "shutdown", "method": method, "can_train": True, "can_serve": True, **told}


SAFE = drill("lora", lost=0.0)


@pytest.mark.parametrize(
    ("rows", "facts", "expected"),
    [
        ([drill("fed_bpt", can_train=False), SAFE], {}, SUPPORTED),
        ([drill("fed_bpt", can_serve=False), SAFE], FAILED, SUPPORTED),
        ([drill("fed_bpt", lost=[0.1, 0.11, 0.12]), SAFE], {}, SUPPORTED),
        ([drill("fed_bpt", lost=[0.1, 0.11, 0.12]), SAFE], FAILED, UNDECIDED),
        ([drill("fed_bpt", lost=0.1), SAFE], {}, UNDECIDED),
        ([drill("Fed_Bpt", can_train=False), drill("Lora", lost=0.0)], {}, SUPPORTED),
        ([drill("fed_bpt", lost=0.0), SAFE], {}, NOT_SUPPORTED),
        ([drill("fed_bpt", before=[0.5, 0.5], after=[0.4, 0.39]), SAFE], {}, SUPPORTED),
        ([drill("fed_bpt", can_train=False), drill("lora", can_train=False)], {}, NOT_SUPPORTED),
        ([drill("fed_bpt", can_train=False), drill("lora", lost=0.1)], {}, UNDECIDED),
        ([drill("fed_bpt", can_train=False)], {}, UNDECIDED),
        # the gate is about closed-side scores alone
        (
            [drill("fed_bpt", can_train=False), drill("lora", lost=[0.1, 0.11])],
            FAILED,
            NOT_SUPPORTED,
        ),
        ([], {}, UNDECIDED),
    ],
)
def test_autonomy_is_judged_both_ways(rows, facts, expected):
    assert judge("H2", ladder([OPEN, CLOSED], drills=rows, **facts)).verdict == expected


def test_every_drill_of_a_method_counts():
    rows = [drill("fed_bpt", lost=0.0), drill("fed_bpt", can_serve=False), SAFE]
    assert judge("H2", ladder([OPEN, CLOSED], drills=rows)).verdict == SUPPORTED


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([OPEN, CLOSED], SUPPORTED),
        ([cell("lora", "open", (0.5, 0.5, 0.5)), CLOSED], NOT_SUPPORTED),
        ([cell("lora", "open", (0.4, 0.41, 0.42)), CLOSED], NOT_SUPPORTED),
        ([cell("lora", "open", (0.4, 0.8, 0.6)), CLOSED], UNDECIDED),
        ([cell("lora", "open", [0.9]), CLOSED], UNDECIDED),
        # a task that both sides solve shows no lead of either
        ([cell("lora", "open", (1.0, 1.0)), cell("x", "closed", (0.98, 0.98))], UNDECIDED),
        ([cell("lora", "open", (1.0, 1.0)), cell("x", "closed", (0.97, 0.97))], SUPPORTED),
        ([OPEN], UNDECIDED),
    ],
)
def test_utility_is_judged_both_ways(cells, expected):
    assert judge("H3", ladder(cells)).verdict == expected


def test_baselines_stand_on_the_closed_side():
    strong = cell("in_context", "baseline", (0.9, 0.91, 0.92))
    finding = judge("H3", ladder([OPEN, CLOSED, strong]))
    assert finding.verdict == NOT_SUPPORTED
    assert "Lora less In_Context" in finding.numbers[0]


def test_utility_is_undecided_on_a_base_that_cannot_be_prompted():
    finding = judge("H3", ladder([OPEN, CLOSED], **FAILED))
    assert finding.verdict == UNDECIDED
    assert finding.numbers[0] == UNPROMPTED
    assert judge("H3", ladder([OPEN, CLOSED], gate=None)).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        ({"EMBEDDINGS": 9, "GRADIENTS": 50}, SUPPORTED),
        ({"EMBEDDINGS": 9, "GRADIENTS": 9}, NOT_SUPPORTED),
        ({"GRADIENTS": 9}, UNDECIDED),
    ],
)
def test_methods_are_counted(tiers, expected):
    assert judge("H4", ladder([], matrix={"methods": 50, **tiers})).verdict == expected


FREE = {"share_derived": "yes", "same_terms": "no", "use_policy": "none", "user_limit": "none"}


@pytest.mark.parametrize(
    ("rules", "tier", "expected"),
    [
        (FREE, "GRADIENTS", NOT_SUPPORTED),
        (FREE | {"use_policy": "a policy"}, "GRADIENTS", SUPPORTED),
        (FREE | {"same_terms": "yes: a copy goes with them"}, "WEIGHTS", SUPPORTED),
        (FREE | {"share_derived": "no"}, "TEXT", UNDECIDED),
        (FREE | {"user_limit": "unknown"}, "GRADIENTS", UNDECIDED),
        ({}, "GRADIENTS", UNDECIDED),
    ],
)
def test_licences_are_judged_by_their_rules(rules, tier, expected):
    passports = {"x": {"class": "III", "licence": "L", "tier": tier, "rules": rules}}
    assert judge("H5", ladder([], passports=passports)).verdict == expected


def test_what_follows_for_artefacts_is_told_once_for_methods_alike():
    terms = [[{"about": "licence of the base", "says": "MIT (open)"}]] * 2
    rows = [drill(method, drill="artefact", terms=terms) for method in ("lora", "flora")]
    numbers = judge("H5", ladder([], drills=rows)).numbers
    assert numbers == ["what lora, flora made: licence of the base: MIT (open)"]


@pytest.mark.parametrize(
    ("other", "audit", "expected"),
    [
        ((0.80, 0.82, 0.81), {"contamination": {"rows": 0.0}}, SUPPORTED),
        ((0.50, 0.52, 0.51), {"contamination": {"rows": 0.0}}, NOT_SUPPORTED),
        ((0.95, 0.97, 0.96), {"contamination": {"rows": 0.0}}, NOT_SUPPORTED),
        ((0.80, 0.82, 0.81), {"contamination": {"rows": 0.2}}, NOT_SUPPORTED),
        ((0.80, 0.82, 0.81), {}, UNDECIDED),
        ((0.60, 0.95, 0.81), {"contamination": {"rows": 0.0}}, UNDECIDED),
        ([0.80], {"contamination": {"rows": 0.0}}, UNDECIDED),
        (None, {"contamination": {"rows": 0.0}}, UNDECIDED),
        ((0.80, 0.82, 0.81), {"refused": "its corpus is closed"}, UNDECIDED),
    ],
)
def test_data_openness_needs_both_bases_and_the_audit(other, audit, expected):
    bases = {"second": [cell("lora", "open", other)]} if other else {}
    assert judge("H6", ladder([OPEN], bases=bases, audit=audit)).verdict == expected


def test_a_baseline_on_another_base_says_nothing_of_tuning():
    bases = {"second": [cell("manual_prompt", "baseline", (0.1, 0.1, 0.1)), OPEN]}
    found = ladder([OPEN, MANUAL], bases=bases, audit={"contamination": {"rows": 0.0}})
    assert judge("H6", found).verdict == SUPPORTED
    told = judge("H6", found).numbers
    assert told[0] == "0.0 % of the evaluation rows stand in the corpus, question and answer"
    assert told[1].startswith("Manual_Prompt, this base less second: +30.0 ± 0.0 points")


@pytest.mark.parametrize(
    ("recovered", "expected"),
    [([0.9, 0.95], SUPPORTED), ([0.1, 0.1], NOT_SUPPORTED), ([0.9], UNDECIDED), (None, UNDECIDED)],
)
def test_updates_are_judged_by_attacks_alone(recovered, expected):
    guess = [0.1] * len(recovered or [])
    attack = {"attack": "inversion", "method": "lora", "recovered": recovered, "guess": guess}
    finding = judge("H7", ladder([OPEN], attacks=[attack] if recovered else None))
    assert finding.verdict == expected
    assert "Lora: 1,000 bytes of updates left the clients" in finding.numbers


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([drill("fed_bpt", lost=[0.1, 0.11]), SAFE], SUPPORTED),
        ([drill("fed_bpt", lost=[0.0, 0.0]), SAFE], NOT_SUPPORTED),
        ([drill("fed_bpt", lost=[0.1, 0.11]), drill("lora", lost=[0.1, 0.11])], NOT_SUPPORTED),
        ([drill("fed_bpt", lost=0.1), SAFE], UNDECIDED),
        ([drill("fed_bpt", lost=[0.1, 0.11])], UNDECIDED),
        # that those shut out cannot train is so by definition
        ([drill("fed_bpt", can_train=False, can_serve=False, lost=0.1), SAFE], UNDECIDED),
        ([drill("fed_bpt", can_serve=False, lost=[0.0, 0.0]), SAFE], NOT_SUPPORTED),
    ],
)
def test_exclusion_is_judged_both_ways(rows, expected):
    assert judge("H8", ladder([OPEN, CLOSED], excluded=rows)).verdict == expected


def test_exclusions_are_found_among_the_drills():
    rows = [drill("fed_bpt", lost=[0.1, 0.11], drill="excluded_price, those shut out")]
    rows += [SAFE, SAFE | {"drill": "excluded_price"}]
    found = ladder([OPEN, CLOSED], drills=rows)
    assert judge("H8", found).verdict == SUPPORTED
    assert judge("H2", found).verdict == UNDECIDED
    assert "1 of 1 closed-side methods lost something" in judge("H8", found).numbers[0]


def square(aspect, property, found):
    squares = matrix(found, verdicts(found))
    return next(s.finding for s in squares if (s.aspect, s.property) == (aspect, property))


def test_the_matrix_has_every_cell_with_a_verdict_and_its_evidence():
    squares = matrix(ladder([]), verdicts(ladder([])))
    assert [(s.aspect, s.property) for s in squares] == [
        (a, p) for a in ASPECTS for p in PROPERTIES
    ]
    assert {s.finding.verdict for s in squares} == {UNDECIDED}
    assert all(s.claim and s.finding.numbers for s in squares)


def test_the_matrix_follows_the_hypotheses():
    found = ladder([OPEN, CLOSED], matrix={"methods": 50, "EMBEDDINGS": 9, "GRADIENTS": 9})
    assert square("weights", "privacy", found).verdict == SUPPORTED
    assert square("architecture and code", "privacy", found).verdict == NOT_SUPPORTED
    assert square("weights", "autonomy", found).verdict == UNDECIDED


def test_the_cells_of_licence_and_data_read_their_own_evidence():
    rows = [drill("fed_bpt", drill="excluded_licence", lost=[0.1, 0.11])]
    second = {"second": [OPEN]}
    found = ladder([OPEN, CLOSED], bases=second, audit={"refused": "closed"}, excluded=rows)
    assert square("licence", "heterogeneity", found).verdict == SUPPORTED
    assert square("pre-training data", "privacy", found).verdict == SUPPORTED
    assert square("pre-training data", "autonomy", found).verdict == NOT_SUPPORTED
    leaks = cell("lora", "open", (0.8, 0.8, 0.8), sent=9.0)
    found = ladder([OPEN], bases={"second": [leaks]}, audit={"contamination": {"rows": 0.0}})
    assert square("pre-training data", "privacy", found).verdict == NOT_SUPPORTED
    assert square("pre-training data", "autonomy", found).verdict == SUPPORTED


def test_numbers_are_told_with_their_intervals():
    assert percent(interval([0.5, 0.5])) == "50.0 ± 0.0 %"
    assert percent(interval([0.5])) == "50.0 %"
    assert percent(None) == "missing"
    assert MANUAL.runs[0].exact_match == 0.4
