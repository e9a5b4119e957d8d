"""H6 can be supported, refuted or left undecided: a base of other data."""

import pytest
from ladders import FAILED, MANUAL, OPEN, cell, judge, ladder

from fedjax_post.report.position.rules import UNPROMPTED
from fedjax_post.report.position.verdicts import NOT_SUPPORTED, SUPPORTED, TOO_FEW

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
