"""Verdicts over tasks: what H1 to H9 come to on several ladders, each of which is judged alone.

| over tasks | when |
| --- | --- |
| by definition | nothing of the hypothesis is measured, on any task |
| undecided | no task decides it; the reasons are those of the tasks |
| decided on one task alone | one task decides it; its verdict there is named |
| supported, not supported | two tasks or more decide it, and all that decide it agree |
| not the same on all tasks | tasks decide it, and contradict each other |

Scores are never pooled over tasks: this takes findings, and no numbers.
"""

from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

from fedjax_post.report.position.hypotheses import HYPOTHESES, Hypothesis
from fedjax_post.report.position.thresholds import ALPHA, TASKS
from fedjax_post.report.position.verdicts import (
    BY_DEFINITION,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Verdict,
)

ALONE, CONTRADICTED = "decided on one task alone", "not the same on all tasks"


class Joint(NamedTuple):
    """A hypothesis, the finding of each task on it, and what they come to."""

    claim: Hypothesis
    verdict: str
    findings: Mapping[str, Finding]  # by the name of the task

    @property
    def told(self) -> str:
        """The verdict; where one task alone decides, with that task and its verdict."""
        if self.verdict != ALONE:
            return self.verdict
        (task, verdict), *_ = _decided(self.findings).items()
        return f"{ALONE}: {verdict} on {task}"

    @property
    def overturned_by(self) -> str:
        """What would have given another verdict over the same tasks and one more."""
        return _OVERTURNED[self.verdict]


class Errors(NamedTuple):
    """Largest probabilities of errors among the measured hypotheses of several ladders."""

    one: float  # a ladder or more reads a false verdict, whatever the ladders share
    two: float  # two ladders or more do, whatever they share
    two_independent: float  # the same, if the ladders' errors are independent


def joint(judged: Mapping[str, Sequence[Verdict]]) -> list[Joint]:
    """Returns what the verdicts of several ladders come to, for H1 to H9.

    Args:
      judged: the `verdicts` of each ladder, by the name of its task.
    """
    by = {task: {one.claim.key: one.finding for one in found} for task, found in judged.items()}
    found = []
    for claim in HYPOTHESES:
        findings = {task: table[claim.key] for task, table in by.items()}
        found.append(Joint(claim, _verdict(findings), findings))
    return found


def errors(num_tasks: int) -> Errors:
    """Returns how probable false verdicts are on so many ladders, each of which keeps to alpha.

    Without independence, the mean number of ladders that err is at most alpha for each of them, and
    two err together in at most half as many cases (Markov's inequality).

    >>> [round(share, 4) for share in errors(2)]
    [0.1, 0.05, 0.0025]

    Args:
      num_tasks: number of ladders, at least 1.
    """
    alpha, mean = ALPHA.value, num_tasks * ALPHA.value
    few = sum(comb(num_tasks, n) * alpha**n * (1 - alpha) ** (num_tasks - n) for n in (0, 1))
    return Errors(min(1.0, mean), min(1.0, mean / 2), max(0.0, 1 - few))


def _decided(findings: Mapping[str, Finding]) -> dict[str, str]:
    read = {task: finding.verdict for task, finding in findings.items()}
    return {task: name for task, name in read.items() if name in (SUPPORTED, NOT_SUPPORTED)}


def _verdict(findings: Mapping[str, Finding]) -> str:
    decided = list(_decided(findings).values())
    if not decided:
        defined = all(finding.verdict == BY_DEFINITION for finding in findings.values())
        return BY_DEFINITION if defined else UNDECIDED
    if len(set(decided)) > 1:
        return CONTRADICTED
    return decided[0] if len(decided) >= TASKS.value else ALONE


_OVERTURNED = {
    BY_DEFINITION: "nothing that is measured could.",
    UNDECIDED: "two tasks that decide it and agree, or contradict each other; one task would be "
    "one alone.",
    ALONE: "a second task that decides it: alike, the verdict would hold over tasks; otherwise, it "
    "would not be the same on all.",
    SUPPORTED: "a task on which it is not supported.",
    NOT_SUPPORTED: "a task on which it is supported.",
    CONTRADICTED: "no further task: only more seeds of these, by which those of one side become "
    "undecided or change sides.",
}
