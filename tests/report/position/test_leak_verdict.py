"""H7 can be supported, refuted or left undecided: what attacks recover from updates."""

import pytest
from ladders import OPEN, attack, judge, ladder

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


def test_the_power_is_printed_and_decides_whether_there_is_a_verdict():
    finding = judge("H7", ladder([OPEN], attacks=[attack([0.5, 0.6, 0.7])]))
    assert finding.p < 0.05 == finding.level  # its interval lies above 0
    assert finding.power < 0.5
    assert finding.told == f"undecided: {TOO_FEW}"
    assert "power for 5 points: 0." in finding.numbers[0]
