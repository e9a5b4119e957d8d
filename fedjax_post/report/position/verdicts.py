"""The verdicts on H1 to H9: pure functions of a ladder's numbers.

| verdict | when |
| --- | --- |
| by definition | nothing of the hypothesis is measured |
| undecided: control missing | the ladder lacks a cell that the contrast needs; it is named |
| undecided: too few seeds | the power for a difference of five points is below one half |
| undecided: its advantage is below two points | there is one, and it counts as none |
| undecided: not all faults were drilled | an advantage is absent from those that were |
| undecided | scores cannot be read, both sides reach the ceiling, or no p passes |
| supported, not supported | its p alone passes at the level of Holm's correction |
"""

from collections.abc import Mapping
from typing import NamedTuple

from fedjax_post.report.position.contrasts import MOST, Shown, power_of, seeds_needed
from fedjax_post.report.position.definitions import DEFINED
from fedjax_post.report.position.hypotheses import HYPOTHESES, Hypothesis
from fedjax_post.report.position.ladder import Ladder
from fedjax_post.report.position.measured import MEASURES, Evidence
from fedjax_post.report.position.rules import p_value
from fedjax_post.report.position.statistics import holm
from fedjax_post.report.position.thresholds import ALPHA, GAIN, MARGIN, POWER

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
UNDECIDED, BY_DEFINITION = "undecided", "by definition"
_AGAINST = ("H1",)  # hypotheses that an advantage speaks against
TOO_FEW = "too few seeds"
SMALL = f"its advantage is below {100 * MARGIN.value:.0f} points"


class Finding(NamedTuple):
    """A verdict, what it rests on, and what is so by definition."""

    verdict: str
    why: str  # of an undecided one
    numbers: list[str]  # measured
    by_definition: list[str]  # what is so; decides nothing
    p: float | None = None  # of the verdict that it is nearest to, before correction
    level: float | None = None  # at which Holm's correction judges p
    power: float | None = None  # for a true difference of `GAIN` at that level
    num_seeds: int = 0

    @property
    def told(self) -> str:
        """The verdict, with the reason where it is undecided."""
        return f"{self.verdict}: {self.why}" if self.why else self.verdict


class Verdict(NamedTuple):
    """A hypothesis and the finding on it."""

    claim: Hypothesis
    finding: Finding


def verdicts(ladder: Ladder) -> list[Verdict]:
    """Returns the verdicts on H1 to H9 for a ladder."""
    evidence = {key: measure(ladder) for key, measure in MEASURES.items()}
    found = judge(evidence)
    return [
        Verdict(
            one,
            found.get(one.key, Finding(BY_DEFINITION, "", [], []))._replace(
                by_definition=DEFINED[one.key](ladder) if one.key in DEFINED else []
            ),
        )
        for one in HYPOTHESES
    ]


def judge(evidence: Mapping[str, Evidence]) -> dict[str, Finding]:
    """Returns the findings on measured statements, corrected for their number."""
    shown = {key: one.shown for key, one in evidence.items() if one.shown is not None}
    levels = holm({key: min(s.p_for, s.p_against) for key, s in shown.items()}, ALPHA.value)
    return {
        key: _finding(key, one, shown[key], *levels[key])
        if key in shown
        else Finding(UNDECIDED, one.lacking or "nothing was measured", one.numbers, [])
        for key, one in evidence.items()
    }


def _finding(key: str, one: Evidence, shown: Shown, level: float, passed: bool) -> Finding:
    favours = shown.p_for <= shown.p_against
    spread = shown.deviation_for if favours else shown.deviation_against
    each = level / (shown.tests_for if favours else shown.tests_against)  # of one contrast
    power = power_of(spread, shown.num_seeds, each)
    p = min(shown.p_for, shown.p_against)
    told = (
        f"{shown.num_seeds} seeds, p {p_value(p)} at a level of {level:.2g}; power for "
        f"{100 * GAIN.value:.0f} points: {power:.2f}"
    )
    if power < POWER.value:
        needed = seeds_needed(spread, each)
        told += (
            f"; with this spread, {needed or f'more than {MOST}'} seeds would have {POWER.value:g}"
        )
    decides = shown.name_for if favours else shown.name_against
    named = [f"decided by: {decides}"] if len(one.contrasts) > 1 and p < 1 else []
    verdict, why = UNDECIDED, one.otherwise
    if power < POWER.value:
        why = TOO_FEW
    elif max(shown.p_for, shown.p_small) <= level:
        why = SMALL
    elif passed and not favours and one.untried:
        why = one.untried
    elif passed:
        verdict, why = SUPPORTED if favours != (key in _AGAINST) else NOT_SUPPORTED, ""
    numbers = [told, *named, *one.numbers]
    return Finding(verdict, why, numbers, [], p, level, power, shown.num_seeds)
