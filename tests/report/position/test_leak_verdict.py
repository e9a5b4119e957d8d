"""H7 can be supported, refuted or left undecided: what attacks recover from updates."""

import math

import pytest
from ladders import OPEN, attack, cell, judge, ladder

from fedjax_post.report.position.contrasts import power_of, seeds_needed
from fedjax_post.report.position.verdicts import NOT_SUPPORTED, SUPPORTED, TOO_FEW


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


def test_only_updates_that_a_cell_which_learned_sends_decide():
    """Else one line of a ladder's file would decide H7: a wire that nobody has a use for."""
    found, nothing = attack([0.9, 0.91, 0.92]), attack([0.1, 0.1, 0.1])
    for other in ({"wire": "one_step"}, {"wire": "mine", "own": False}):
        alone = judge("H7", ladder([OPEN], attacks=[found | other]))
        assert alone.told == "undecided: no attack was run on the wire of a cell that learned"
        beside = judge("H7", ladder([OPEN], attacks=[found | other, nothing]))
        assert beside.told == NOT_SUPPORTED
        assert any("not counted: no cell that learned sends it" in line for line in beside.numbers)
    idle = cell("lora", "open", (0.41, 0.42, 0.4))
    assert judge("H7", ladder([idle], attacks=[found])).told.startswith("undecided: no attack was")
    told = judge("H7", ladder([OPEN], attacks=[found | {"wire": "own", "own": True}]))
    assert told.verdict == SUPPORTED


def test_the_power_is_printed_and_decides_whether_there_is_a_verdict():
    finding = judge("H7", ladder([OPEN], attacks=[attack([0.5, 0.6, 0.7])]))
    assert finding.p < 0.05 == finding.level  # its interval lies above 0
    assert finding.power < 0.5
    assert finding.told == f"undecided: {TOO_FEW}"
    assert "power for 5 points: 0." in finding.numbers[0]


def test_too_few_seeds_are_told_how_many_would_do():
    spread, level = 0.077, 0.01
    needed = seeds_needed(spread, level)
    assert needed is not None
    assert power_of(spread, needed - 1, level) < 0.5 <= power_of(spread, needed, level)
    assert seeds_needed(1.0, level) is None
    assert seeds_needed(math.nan, level) is None
    assert seeds_needed(1e-6, level) == 2
    few = judge("H7", ladder([OPEN], attacks=[attack([0.5, 0.6, 0.7])]))
    told = int(few.numbers[0].split(" seeds would have 0.5")[0].split()[-1])
    assert told == seeds_needed(0.1, few.level) > few.num_seeds
