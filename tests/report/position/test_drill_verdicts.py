"""H2 and H8 can be supported, refuted or left undecided: what faults cost either side."""

import pytest
from ladders import CLOSED, FAILED, OPEN, cell, judge, ladder

from fedjax_post.report.position import losses
from fedjax_post.report.position.aspects import matrix
from fedjax_post.report.position.rules import UNPROMPTED
from fedjax_post.report.position.verdicts import (
    NOT_SUPPORTED,
    SUPPORTED,
    TOO_FEW,
    UNDECIDED,
    verdicts,
)


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
    rows = drills_of(PAIRS[key], closed, free)
    assert judge(key, ladder([OPEN, CLOSED], drills=rows, **facts)).told == expected


PAIRS = {"H2": losses.CHANGES, "H8": losses.EXCLUSIONS}


def drill(name, method, lost, **more):
    return {"drill": name, "method": method, "lost": lost, "by_definition": False} | more


def drills_of(pairs, closed, free):
    """The rows of both sides of pairs of faults."""
    ours = [drill(name, "fed_bpt", closed) for name in dict.fromkeys(p.ours for p in pairs)]
    return ours + [drill(name, "lora", free) for name in dict.fromkeys(p.theirs for p in pairs)]


@pytest.mark.parametrize("key", ["H2", "H8"])
def test_what_was_not_drilled_is_not_said_to_cost_nothing(key):
    """One fault that costs more is enough for an advantage; for its absence, all are needed."""
    pairs, much, none = PAIRS[key], [0.2, 0.21, 0.22], [0.0, 0.01, 0.01]
    of = lambda *lost: judge(key, ladder([OPEN, CLOSED], drills=drills_of(pairs[1:], *lost)))
    assert of(much, none).verdict == SUPPORTED
    finding = of(none, much)
    assert finding.told == "undecided: not all faults were drilled"
    absent = f"{pairs[0].ours} with {pairs[0].theirs}"
    assert any(line.startswith("not drilled") and absent in line for line in finding.numbers)
    # Nor is it, as long as one of the ways in which closed models are used was left out
    finding = judge(key, ladder([OPEN, CLOSED, TUNED], drills=drills_of(pairs, none, much)))
    assert finding.told == "undecided: not all faults were drilled"


def test_faults_are_compared_in_pairs_so_that_a_list_of_drills_decides_nothing():
    strong, none = [0.2, 0.21, 0.19], [0.0, 0.002, 0.001]
    rows = [drill("changed", "fed_bpt", strong), drill("base_update", "lora", [0.05, 0.051, 0.049])]
    idle = [drill(n, "fed_bpt", none) for n in ("refused", "rate_limited", "tuned_withdrawn")]
    more = [*rows, *idle, drill("withdrawn", "lora", none)]
    for drills in (rows, more):
        finding = judge("H2", ladder([OPEN, CLOSED], drills=drills))
        assert finding.verdict == SUPPORTED
    named = "decided by: loss at once by changed (fed_bpt) less that by base_update (lora)"
    assert f"{named}, in the end where it was not recorded at once" in finding.numbers


@pytest.mark.parametrize("key", ["H2", "H8"])
def test_a_drill_whose_outcome_is_by_definition_was_drilled(key):
    """A host that has all rows loses nothing by refusing who sent them; that is known, and told."""
    pairs, much, none = PAIRS[key], [0.2, 0.21, 0.22], [0.0, 0.01, 0.01]
    rows = drills_of(pairs, none, much)
    idle = {"by_definition": [True] * 3, "lost": [0.0] * 3}
    known = [row | (idle if row["drill"] == pairs[-1].ours else {}) for row in rows]
    for drills in (rows, known):
        assert judge(key, ladder([OPEN, CLOSED], drills=drills)).told == NOT_SUPPORTED
    nobody = lambda row: row["drill"] == pairs[0].theirs  # can be hit, among the clients
    hit = [row | (idle if nobody(row) else {}) for row in rows]
    assert judge(key, ladder([OPEN, CLOSED], drills=hit)).verdict == UNDECIDED
    silent = cell("offsite", "closed", (0.7, 0.7, 0.7), asked=0.0)
    unasked = [row | {"method": "offsite"} if row["method"] == "fed_bpt" else row for row in rows]
    more = [drill(name, "host", none) for name in dict.fromkeys(p.ours for p in pairs)]
    found = judge(key, ladder([OPEN, CLOSED, TUNED, silent], drills=[*unasked, *more]))
    assert found.told == "undecided: not all faults were drilled"


@pytest.mark.parametrize("key", ["H2", "H8"])
def test_a_fault_that_hurts_nobody_shows_no_equality(key):
    names = {"H2": ("changed", "base_update"), "H8": ("excluded_price", "excluded_memory")}[key]
    lost = [0.0, 0.004, 0.0], [0.004, 0.0, 0.0]
    rows = [drill(*one) for one in zip(names, ("fed_bpt", "lora"), lost, strict=True)]
    finding = judge(key, ladder([OPEN, CLOSED], drills=rows))
    assert finding.told == "undecided: no fault cost either side 2 points"


AT_ONCE = {"at_fault": [0.8, 0.8, 0.8], "at_change": [0.6, 0.61, 0.59]}


def test_a_change_that_hurts_at_once_and_is_made_good_on_both_sides_shows_equality():
    """The other faults cost nobody anything; without the one that did, nothing would show."""
    lost = [0.0, 0.004, 0.0]
    rows = [drill("base_retired", "fed_bpt", lost, **AT_ONCE), drill("base_renewed", "lora", lost)]
    others = [pair for pair in losses.CHANGES if pair.ours != "base_retired"]
    idle = drills_of(others, lost, [0.004, 0.0, 0.0])
    of = lambda rows: judge("H2", ladder([OPEN, CLOSED], drills=rows)).told
    assert of([*rows, *idle]) == NOT_SUPPORTED
    assert of(idle) == "undecided: no fault cost either side 2 points"


def test_a_remedy_of_one_side_is_compared_with_that_of_the_other_alone():
    """A host that trains again is not held against weights that do not, nor the other way round."""
    lost, good = [0.2, 0.21, 0.22], [0.0, 0.004, 0.0]
    hosted = [drill("changed", "fed_bpt", good, **AT_ONCE), drill("base_retired", "fed_bpt", good)]
    update, renewed = drill("base_update", "lora", lost), drill("base_renewed", "lora", lost)
    of = lambda *rows: judge("H2", ladder([OPEN, CLOSED], drills=rows))
    both = of(*hosted, update, renewed).numbers
    told = {line.partition(" (")[0]: line.rpartition(": ")[2] for line in both}
    assert told["loss at once by changed"].startswith("-1.0 ")
    assert told["loss by base_retired"].startswith("-20.9 ")
    assert "no fault of a host was measured together" in of(hosted[1], update).why
    assert "no fault of a host was measured together" in of(hosted[0], renewed).why


TUNED = cell("host", "closed", (0.9, 0.9, 0.9), tier="FINETUNE")
WEAK = cell("bdpl", "closed", (0.5, 0.5, 0.5))


@pytest.mark.parametrize("key", ["H2", "H8"])
def test_each_way_of_using_a_closed_model_is_judged_by_its_best_method(key):
    """The host that trains loses nothing; of the two that ask, the better one loses."""
    ours, theirs = {
        "H2": ("changed", "base_update"),
        "H8": ("excluded_price", "excluded_memory"),
    }[key]
    none, much = [0.0, 0.004, 0.0], [0.2, 0.21, 0.19]
    before = {"host": 0.9, "fed_bpt": 0.8, "bdpl": 0.7}

    def found(**lost):
        rows = [drill(ours, m, lost[m], before=[before[m]] * 3) for m in lost]
        cells = [OPEN, CLOSED, TUNED, WEAK]
        return judge(key, ladder(cells, drills=[*rows, drill(theirs, "lora", none)]))

    assert found(host=none, fed_bpt=much, bdpl=none).verdict == SUPPORTED
    finding = found(host=none, fed_bpt=none, bdpl=much)
    assert finding.verdict != SUPPORTED
    lines = [line for line in finding.numbers if line.startswith("loss")]
    assert len(lines) == 2  # the host is asked, and it trains
    assert "(fed_bpt)" in lines[0]
    assert "(host)" in lines[1]
    assert found(host=much, fed_bpt=none).verdict == SUPPORTED
    # What hurts a method that is not compared shows nothing of those that are
    assert found(fed_bpt=none, bdpl=much).told == "undecided: no fault cost either side 2 points"
    told = f"not drilled of fine-tuning by the host, or nobody could be hit: {ours} with"
    assert any(line.startswith(told) for line in found(fed_bpt=much).numbers)


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
