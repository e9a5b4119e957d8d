"""H1 can be supported, refuted or left undecided: who sees what, by the gain over the control."""

import pytest
from ladders import CLOSED, FAILED, OPEN, cell, control, judge, ladder

from fedjax_post.report.position.rules import UNPROMPTED
from fedjax_post.report.position.verdicts import NOT_SUPPORTED, SUPPORTED, TOO_FEW

SILENT = cell("fed_pt", "closed", (0.7, 0.71, 0.72), asked=0.0)


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
