"""Each measured hypothesis can be supported, refuted or left undecided, with the reason."""

import pytest
from ladders import CENTRAL, CLOSED, GATE, MANUAL, OPEN, PROMPTS, cell, control, ladder

from fedjax_post.report.comparison import interval
from fedjax_post.report.position.aspects import ASPECTS, PROPERTIES, matrix
from fedjax_post.report.position.controls import best_of
from fedjax_post.report.position.hypotheses import HYPOTHESES
from fedjax_post.report.position.measured import MEASURES
from fedjax_post.report.position.rules import UNPROMPTED, gate, percent
from fedjax_post.report.position.thresholds import THRESHOLDS
from fedjax_post.report.position.verdicts import (
    BY_DEFINITION,
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_FEW,
    UNDECIDED,
    verdicts,
)

FAILED = {"gate": GATE | {"manual_prompt": 0.25}}
ALONE = control("one_client", 0.5, 0.5, 0.5)
REST = [CENTRAL, MANUAL, *PROMPTS]
FULL = cell("lora", "open", (1.0, 0.99, 1.0))
SILENT = cell("fed_pt", "closed", (0.7, 0.71, 0.72), asked=0.0)


def judge(key, found):
    """What H1 to H8 come to, one of them."""
    return next(v.finding for v in verdicts(found) if v.claim.key == key)


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


def test_tokens_decide_nothing():
    """That a hosted target sees what it is asked follows from the access that is declared."""
    finding = judge("H1", ladder([OPEN, CLOSED]))
    assert finding.told == "undecided: no closed-side method that asks nothing in training"
    assert "the same run would have shown it 700" in finding.by_definition[0]
    hosted = cell("fed_bpt", "closed", [0.5], asked=900.0, sent=700.0, inference="provider")
    told = "\n".join(judge("H1", ladder([OPEN, hosted])).by_definition)
    assert "inference at provider: 700 private tokens left the federation" in told
    assert "Lora (GRADIENTS), which asks no host: 0 private tokens left the federation" in told


@pytest.mark.parametrize(
    ("proxy", "facts", "expected"),
    [
        ((0.5, 0.51, 0.52), {}, NOT_SUPPORTED),  # the target is used, and sees nothing
        ((0.7, 0.71, 0.72), {}, SUPPORTED),  # the proxy does it alone
        ((0.72, 0.73, 0.74), {}, SUPPORTED),
        ((0.6, 0.8, 0.7), {}, f"undecided: {TOO_FEW}"),
        ((0.5, 0.51, 0.52), FAILED, f"undecided: {UNPROMPTED}"),
        ((), {}, "undecided: control missing: the proxy alone, tuned, without the target"),
    ],
)
def test_privacy_is_judged_by_the_gain_over_the_control(proxy, facts, expected):
    cells = [OPEN, CLOSED, SILENT, *([control("proxy", *proxy)] if proxy else [])]
    assert judge("H1", ladder(cells, **facts)).told == expected


def test_the_better_stand_in_is_the_control_of_an_emulator():
    own = cell("offsite_tuning", "closed", (0.9, 0.91, 0.92), tier="EMULATOR", asked=0.0)
    weak, strong = (control(k, 0.5, 0.5, 0.5) for k in ("stand_in", "stand_in_untuned"))
    assert judge("H1", ladder([own, weak, strong])).verdict == NOT_SUPPORTED
    strong = control("stand_in_untuned", 0.9, 0.91, 0.92)
    assert judge("H1", ladder([own, weak, strong])).verdict == SUPPORTED
    assert "stand-in alone, untuned" in judge("H1", ladder([own, weak])).told


def test_a_control_at_the_ceiling_says_nothing_of_the_target():
    full = cell("fed_pt", "closed", (1.0, 1.0, 1.0), asked=0.0)
    cells = [full, control("proxy", 0.99, 1.0, 1.0)]
    below = cell("fed_pt", "closed", (0.9, 0.91, 0.92), asked=0.0)
    for first in (full, below):
        finding = judge("H1", ladder([first, cells[1]]))
        assert finding.why == "no method that asks nothing in training could show a gain"
        assert "its control reaches 98 %: Fed_Pt" in finding.numbers
    own = cell("offsite_tuning", "closed", (0.9, 0.91, 0.92), tier="EMULATOR", asked=0.0)
    others = [control(k, 0.5, 0.5, 0.5) for k in ("stand_in", "stand_in_untuned")]
    assert judge("H1", ladder([*cells, own, *others])).verdict == NOT_SUPPORTED


def test_a_method_that_learned_nothing_says_nothing_of_the_target():
    failed = cell("fed_pt", "closed", (0.4, 0.41, 0.42), asked=0.0)
    finding = judge("H1", ladder([failed, control("proxy", 0.53, 0.54, 0.55)]))
    assert finding.why == "no method that asks nothing in training could show a gain"
    assert "learned nothing: Fed_Pt" in finding.numbers


def test_a_rival_at_the_ceiling_can_be_worse_to_be_behind_only():
    """Nothing is ahead of 100 %: 'no advantage' must be a lag, and not lie within the margin."""
    rest = [ALONE, CENTRAL, MANUAL, *PROMPTS]
    rival = cell("x", "closed", (0.99, 1.0, 1.0), asked=7.0)
    near = cell("lora", "open", (0.97, 0.99, 0.97))
    assert judge("H3", ladder([near, rival, *rest])).verdict == UNDECIDED
    assert judge("H3", ladder([OPEN, rival, *rest])).verdict == NOT_SUPPORTED


def test_an_advantage_below_the_margin_is_none_and_no_equality():
    rival = (0.70, 0.72, 0.71, 0.71, 0.71)
    ours = cell("lora", "open", [score + 0.01 for score in rival])
    cells = [ours, cell("x", "closed", rival, asked=7.0), ALONE, CENTRAL, MANUAL, *PROMPTS]
    assert judge("H3", ladder(cells)).told == "undecided: its advantage is below 2 points"


def spending(one, tokens):
    runs = {
        s: r._replace(summary=r.summary | {"model_tokens": tokens}) for s, r in one.runs.items()
    }
    return one._replace(runs=runs)


@pytest.mark.parametrize(
    ("held", "asking", "budget", "expected"),
    [
        (1000, 1000, 1000, SUPPORTED),
        (2000, 1000, 1000, "undecided: unequal budgets: Lora"),
        (1000, 500, 1000, "undecided: unequal budgets: Host"),
        (500, 2000, 1000, SUPPORTED),  # the open side leads with less
        (2000, 1000, None, "undecided: unequal budgets: none was stated, and the open side spent "
         "more"),
        (1000, 1000, None, SUPPORTED),
    ],
)  # fmt: skip
def test_equal_budgets_are_a_condition(held, asking, budget, expected):
    host = cell("host", "closed", (0.7, 0.72, 0.71), tier="FINETUNE", asked=7.0)
    cells = [spending(OPEN, held), spending(host, asking), ALONE, MANUAL, *PROMPTS]
    assert judge("H3", ladder(cells, budget=budget)).told == expected


@pytest.mark.parametrize(
    ("closed", "free", "facts", "expected"),
    [
        ([0.2, 0.21, 0.22], [0.0, 0.01, 0.01], {}, SUPPORTED),
        ([0.0, 0.01, 0.01], [0.1, 0.11, 0.12], {}, NOT_SUPPORTED),
        ([0.0, 0.4, 0.2], [0.1, 0.1, 0.1], {}, f"undecided: {TOO_FEW}"),
        ([0.2, 0.21, 0.22], [0.0, 0.01, 0.01], FAILED, f"undecided: {UNPROMPTED}"),
        ([0.2], [0.0], {}, f"undecided: {TOO_FEW}"),
    ],
)
@pytest.mark.parametrize("key", ["H2", "H8"])
def test_drills_are_judged_by_what_they_cost_either_side(key, closed, free, facts, expected):
    names = {"H2": ("changed", "base_update"), "H8": ("excluded_price", "excluded_memory")}[key]
    rows = [
        {"drill": name, "method": method, "lost": lost, "by_definition": False}
        for name, method, lost in zip(names, ("fed_bpt", "lora"), (closed, free), strict=True)
    ]
    assert judge(key, ladder([OPEN, CLOSED], drills=rows, **facts)).told == expected


def drill(name, method, lost, **more):
    return {"drill": name, "method": method, "lost": lost, "by_definition": False} | more


def test_faults_are_compared_in_pairs_so_that_a_list_of_drills_decides_nothing():
    strong, none = [0.2, 0.21, 0.19], [0.0, 0.002, 0.001]
    rows = [drill("changed", "fed_bpt", strong), drill("base_update", "lora", [0.05, 0.051, 0.049])]
    idle = [drill(n, "fed_bpt", none) for n in ("refused", "rate_limited", "tuned_withdrawn")]
    more = [*rows, *idle, drill("withdrawn", "lora", none)]
    for drills in (rows, more):
        finding = judge("H2", ladder([OPEN, CLOSED], drills=drills))
        assert finding.verdict == SUPPORTED
    named = "decided by: loss by changed (fed_bpt) less that by base_update (lora)"
    assert named in finding.numbers


@pytest.mark.parametrize("key", ["H2", "H8"])
def test_a_fault_that_hurts_nobody_shows_no_equality(key):
    names = {"H2": ("changed", "base_update"), "H8": ("excluded_price", "excluded_memory")}[key]
    lost = [0.0, 0.004, 0.0], [0.004, 0.0, 0.0]
    rows = [drill(*one) for one in zip(names, ("fed_bpt", "lora"), lost, strict=True)]
    finding = judge(key, ladder([OPEN, CLOSED], drills=rows))
    assert finding.told == "undecided: no fault cost either side 2 points"


def test_a_change_that_hurts_at_once_and_is_made_good_shows_equality():
    lost = [0.0, 0.004, 0.0]
    at_once = {"at_fault": [0.8, 0.8, 0.8], "at_change": [0.6, 0.6, 0.6]}
    rows = [drill("changed", "fed_bpt", lost, **at_once), drill("base_update", "lora", lost)]
    assert judge("H2", ladder([OPEN, CLOSED], drills=rows)).verdict == NOT_SUPPORTED


@pytest.mark.parametrize("key", ["H2", "H8"])
def test_a_drill_that_cannot_hurt_an_open_method_decides_nothing(key):
    name = {"H2": "changed", "H8": "excluded_price"}[key]
    rows = [
        {"drill": "shutdown", "method": "fed_bpt", "can_serve": False, "lost": [0.9, 0.9, 0.9]},
        {"drill": name, "method": "fed_bpt", "lost": [0.2, 0.21, 0.22]},
        {"drill": f"{name}, those shut out", "method": "fed_bpt", "lost": [0.9, 0.9, 0.9]},
        {"drill": name, "method": "lora", "lost": [0.0, 0.0, 0.0]},  # it ran undisturbed
    ]
    finding = judge(key, ladder([OPEN, CLOSED], drills=rows))
    assert finding.verdict == UNDECIDED
    assert "an open m" in finding.why


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([OPEN, CLOSED, ALONE, *REST], SUPPORTED),
        ([OPEN, cell("x", "closed", (0.9, 0.92, 0.91), asked=7.0), ALONE, *REST],
         NOT_SUPPORTED),
        ([OPEN, CLOSED, cell("y", "baseline", (0.9, 0.92, 0.91)), ALONE, *REST],
         NOT_SUPPORTED),
        ([OPEN, CLOSED, ALONE, CENTRAL, MANUAL],
         "undecided: control missing: the best of ten manual prompts (there are 1)"),
        ([OPEN, CLOSED, *REST],
         "undecided: control missing: one client alone, without a federation, for as many steps"),
        ([OPEN, CLOSED, control("one_client", 0.8, 0.82, 0.81), *REST],
         "undecided: no open method was shown to gain over one client alone"),
        ([FULL, cell("x", "closed", (0.98, 0.98, 0.98), asked=7.0), ALONE, *REST],
         "undecided: both sides reach 98 %"),
        ([FULL, cell("x", "closed", (0.96, 0.95, 0.96), asked=7.0), ALONE, *REST],
         SUPPORTED),
        ([OPEN, ALONE], "undecided: no scored cell of one side"),
        ([OPEN, CLOSED, ALONE, control("central", 0.9, 0.92, 0.91), MANUAL, *PROMPTS],
         NOT_SUPPORTED),
        ([OPEN, CLOSED, ALONE, MANUAL, *PROMPTS],
         "undecided: control missing: fine-tuning by the host, or LoRA on the same rows in one "
         "place, without a federation"),
        ([OPEN, CLOSED, cell("host", "closed", (0.7, 0.72, 0.71), tier="FINETUNE", asked=7.0),
          ALONE, MANUAL, *PROMPTS], SUPPORTED),
        ([OPEN, CLOSED, cell("host", "closed", (), tier="FINETUNE"), ALONE,
          *REST], "undecided: rivals without a score: Host"),
        ([OPEN, CLOSED, cell("ahead", "closed", (0.9, 0.9), asked=7.0), ALONE,
          *REST], "undecided: seeds are missing of Ahead, ahead on those it has"),
        ([OPEN, CLOSED, cell("behind", "closed", (0.3, 0.3), asked=7.0), ALONE,
          *REST], SUPPORTED),
    ],
)  # fmt: skip
def test_utility_is_judged_both_ways(cells, expected):
    assert judge("H3", ladder(cells)).told == expected


def test_cells_are_compared_on_the_same_rows_alone():
    """So that items are paired within a seed; records without a digest are taken at their word."""
    marked = lambda one, digest: one._replace(
        runs={
            seed: run._replace(summary=run.summary | {"heldout_digest": digest})
            for seed, run in one.runs.items()
        }
    )
    cells = [CLOSED, SILENT, control("proxy", 0.5, 0.51, 0.52)]
    same = ladder([marked(OPEN, "a"), *(marked(one, "a") for one in cells)])
    assert judge("H1", same).verdict == NOT_SUPPORTED
    other = ladder([marked(OPEN, "b"), *(marked(one, "a") for one in cells)])
    assert judge("H1", other).why == "cells of a seed were scored on different rows"


def test_a_closed_method_that_its_proxy_does_alone_is_no_rival():
    silent = cell("fed_pt", "closed", (0.9, 0.91, 0.92), asked=0.0)
    cells = [OPEN, CLOSED, silent, ALONE, CENTRAL, MANUAL, *PROMPTS]
    with_proxy = lambda *scores: ladder([*cells, control("proxy", *scores)])
    finding = judge("H3", with_proxy(0.9, 0.91, 0.92))
    assert finding.verdict == SUPPORTED
    assert "not counted as using the target: Fed_Pt" in finding.numbers
    assert judge("H3", with_proxy(0.5, 0.51, 0.52)).verdict == NOT_SUPPORTED
    assert "the proxy alone" in judge("H3", ladder(cells)).why


def test_the_best_cell_is_chosen_on_other_seeds():
    first = cell("a", "open", (0.9, 0.1, 0.1))
    second = cell("b", "open", (0.2, 0.8, 0.8))
    found = best_of("best", [first, second])
    assert found.scores == {0: 0.2, 1: 0.1, 2: 0.1}  # each time the winner of the other two seeds
    assert best_of("best", [first]).scores == {0: 0.9, 1: 0.1, 2: 0.1}
    assert best_of("best", [cell("c", "open", [0.5]), cell("d", "open", [0.6])]).scores == {}


OTHER = {"other_bases": {"second": {"shares_data": False}}}
CLEAN = {"contamination": {"rows": 0.0, "num_rows": 480}, "sampled": False}
UNKNOWN = "undecided: whether the base has read the evaluation's rows is unknown"


@pytest.mark.parametrize(
    ("other", "facts", "expected"),
    [
        ((0.80, 0.82, 0.81), OTHER, SUPPORTED),
        ((0.50, 0.52, 0.51), OTHER, NOT_SUPPORTED),
        ((0.95, 0.97, 0.96), OTHER, NOT_SUPPORTED),
        ((0.60, 0.95, 0.81), OTHER, f"undecided: {TOO_FEW}"),
        ([0.80], OTHER, f"undecided: {TOO_FEW}"),
        (None, OTHER, "undecided: no second base of other data"),
        ((0.80, 0.82, 0.81), {}, "undecided: no second base of other data"),
        ((0.80, 0.82, 0.81), {"other_bases": {"second": {"shares_data": True}}},
         "undecided: no second base of other data"),
        ((0.80, 0.82, 0.81), OTHER | {"audit": {"contamination": {"rows": 0.1, "num_rows": 480}}},
         "undecided: the corpus contains rows of the evaluation"),
        # 7 of 480: the interval reaches from 0.7 to 3.0 %, and decides nothing
        ((0.80, 0.82, 0.81),
         OTHER | {"audit": CLEAN | {"contamination": {"rows": 7 / 480, "num_rows": 480}}},
         SUPPORTED),
        ((0.80, 0.82, 0.81), OTHER | {"audit": CLEAN | {"sampled": True}}, UNKNOWN),
        ((0.80, 0.82, 0.81), OTHER | {"audit": {"refused": "no corpus"}}, UNKNOWN),
        ((0.80, 0.82, 0.81), OTHER | {"audit": None}, UNKNOWN),
        ((0.80, 0.82, 0.81), OTHER | FAILED, f"undecided: {UNPROMPTED}"),
    ],
)  # fmt: skip
def test_data_openness_needs_a_base_of_other_data(other, facts, expected):
    bases = {"second": [cell("lora", "open", other)]} if other else {}
    found = ladder([OPEN], bases=bases, **({"audit": CLEAN} | facts))
    assert judge("H6", found).told == expected


def test_methods_that_learned_on_neither_base_say_nothing_of_them():
    same = cell("lora", "open", (0.4, 0.41, 0.42))
    found = ladder([same], bases={"second": [same]}, audit=CLEAN, **OTHER)
    assert judge("H6", found).told == "undecided: no second base of other data"


def test_a_baseline_on_another_base_says_nothing_of_tuning():
    bases = {"second": [cell("manual_prompt", "baseline", (0.1, 0.1, 0.1)), OPEN]}
    found = ladder([OPEN, MANUAL], bases=bases, audit=CLEAN, **OTHER)
    assert judge("H6", found).verdict == SUPPORTED


def attack(recovered, guess=0.1):
    guesses = [guess] * len(recovered)
    found = {"attack": "inversion", "method": "lora", "recovered": recovered, "guess": guesses}
    return found | {"tokens": [330] * len(recovered)}


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [
        ([attack([0.9, 0.91, 0.92])], SUPPORTED),
        ([attack([0.1, 0.1, 0.1])], NOT_SUPPORTED),
        ([attack([0.1, 0.1, 0.1]), attack([0.9, 0.91, 0.92])], SUPPORTED),
        ([attack([0.9])], f"undecided: {TOO_FEW}"),
        ([], "undecided: no attack was run"),
        (
            [attack([0.0, 0.0, 0.0], 0.0) | {"tokens": [33, 0, 33], "wire": "own"}],
            "undecided: no private token was there to be recovered from own",
        ),
        (
            [attack([1 / 33, 1 / 33, 1 / 33], 0.0) | {"tokens": [33, 33, 33]}],
            f"undecided: {TOO_FEW}",
        ),  # one token
    ],
)
def test_updates_are_judged_by_attacks_alone(attacks, expected):
    finding = judge("H7", ladder([OPEN], attacks=attacks))
    assert finding.told == expected
    assert "Lora: 1,000 bytes of updates left the clients" in finding.by_definition


def test_the_power_is_printed_and_decides_whether_there_is_a_verdict():
    finding = judge("H7", ladder([OPEN], attacks=[attack([0.5, 0.6, 0.7])]))
    assert finding.p < 0.05 == finding.level  # its interval lies above 0
    assert finding.power < 0.5
    assert finding.told == f"undecided: {TOO_FEW}"
    assert "power for 5 points: 0." in finding.numbers[0]


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


def test_a_licence_of_open_weights_is_judged_by_its_own_drill():
    def square(*rows):
        found = ladder([OPEN, CLOSED], drills=rows)
        squares = matrix(found, verdicts(found))
        return next(s.finding for s in squares if (s.aspect, s.property) == cell_of)

    cell_of = ("licence", "heterogeneity")
    row = {"drill": "excluded_weights_licence", "lost": [0.1, 0.11, 0.12], "by_definition": False}
    theirs = row | {"method": "fed_bpt", "drill": "excluded_licence"}
    assert square(theirs).verdict == UNDECIDED  # that of a closed model
    assert square(row | {"method": "lora", "by_definition": True}).verdict == UNDECIDED
    assert square(row | {"method": "lora"}).verdict == SUPPORTED
    assert square(row | {"method": "lora", "lost": [0.0, 0.0, 0.0]}).verdict == NOT_SUPPORTED


def test_numbers_are_told_with_their_intervals():
    assert percent(interval([0.5, 0.5])) == "50.0 ± 0.0 %"
    assert percent(interval([0.5])) == "50.0 %"
    assert percent(None) == "missing"
    assert MANUAL.runs[0].right == 0.4
