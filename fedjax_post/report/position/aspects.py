"""The paper's matrix: four aspects of openness against three properties of federated learning.

The claims are those of Table 1 of arXiv:2505.23593, condensed. A cell's verdict follows from the
findings on H1 to H8. A cell that no run concerns is undecided here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedjax_post.report.position.evidence import audit_of, audited, base_gaps
from fedjax_post.report.position.ladder import Ladder, disclosed
from fedjax_post.report.position.rules import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    all_of,
    percent,
    points,
)
from fedjax_post.report.position.verdicts import Verdict, costs, drill_told, exclusions

ASPECTS = ("weights", "architecture and code", "licence", "pre-training data")
PROPERTIES = ("privacy", "autonomy", "heterogeneity")

Judged = Mapping[str, Verdict]
Rule = Callable[[Ladder, Judged], Finding]


class Square(NamedTuple):
    """One cell of the matrix."""

    aspect: str
    property: str
    claim: str  # of the paper, condensed
    finding: Finding


def matrix(ladder: Ladder, judged: Sequence[Verdict]) -> list[Square]:
    """Returns the twelve cells, ordered by aspect.

    Args:
      ladder: the ladder.
      judged: its `verdicts`.
    """
    by = {verdict.claim.key: verdict for verdict in judged}
    return [Square(*words, rule(ladder, by)) for words, rule in _SQUARES]


def _follow(*keys: str, note: str = "") -> Rule:
    """Returns the rule of a cell that holds if all these hypotheses hold."""

    def rule(ladder: Ladder, by: Judged) -> Finding:
        del ladder
        told = [f"{key}, {by[key].finding.verdict}: {by[key].finding.numbers[0]}" for key in keys]
        verdict = all_of(by[key].finding.verdict for key in keys)
        return Finding(verdict, [*told, *([note] if note else [])])

    return rule


def _nothing(needed: str) -> Rule:
    return lambda ladder, by: Finding(UNDECIDED, [f"no run bears on it; it needs {needed}"])


def _barrier(ladder: Ladder, by: Judged) -> Finding:
    """Returns the finding on whether exclusion by licence costs the federation or these clients."""
    del by
    rows = [row for row in exclusions(ladder) if "licence" in str(row.get("drill"))]
    hits = [
        hit
        for kind in ("closed", "open")
        for hit in costs(ladder, rows, kind, by_score=True).values()
    ]
    verdict = SUPPORTED if True in hits else UNDECIDED
    if hits and set(hits) == {False}:
        verdict = NOT_SUPPORTED
    return Finding(verdict, [drill_told(row) for row in rows] or ["missing: no drill by licence"])


def _same_disclosure(ladder: Ladder, by: Judged) -> Finding:
    """Returns the finding on whether equally many private tokens leave on another base."""
    del by
    cells = {cell.method: cell for cell in ladder.cells}
    told, same = [], []
    for base, others in ladder.bases.items():
        for other in others:
            here = cells[other.method].runs if other.method in cells else {}
            pairs = [
                (disclosed(here[s]), disclosed(other.runs[s])) for s in other.runs if s in here
            ]
            if pairs and all(None not in pair for pair in pairs):
                same.append(all(a == b for a, b in pairs))
                told.append(
                    f"{other.label} on {base}: {'as many' if same[-1] else 'not as many'} private "
                    "tokens left the federation as on this base"
                )
    if not told:
        return Finding(UNDECIDED, ["missing: the same cells on a base with another corpus"])
    return Finding(SUPPORTED if all(same) else NOT_SUPPORTED, told)


def _audit(ladder: Ladder, by: Judged) -> Finding:
    del by
    found = audit_of(ladder)
    if found.get("refused"):
        told = f"the audit was refused: {found['refused']}"
        return Finding(NOT_SUPPORTED, [told, "a federation cannot check a base of closed data"])
    if audited(ladder) == UNDECIDED:
        return Finding(UNDECIDED, ["missing: an audit of the corpus"])
    told = f"{percent(found['contamination']['rows'])} of the evaluation rows stand in the corpus"
    return Finding(audited(ladder), [told, "that anybody could find this out took an open corpus"])


def _own_scores(ladder: Ladder, by: Judged) -> Finding:
    del by
    gaps = [
        f"{label} over all clients, this base less {base}: {points(gap)}"
        for (base, label), gap in base_gaps(ladder).items()
    ]
    return Finding(UNDECIDED, ["needs each client's own score on two bases", *gaps])


_TOGETHER = "weights and architecture come together in the tiers: neither was opened alone"
_RELIANCE = "yes: fewer ways of use, more reliance on the provider"
_SQUARES: tuple[tuple[tuple[str, str, str], Rule], ...] = (
    (
        (
            *("weights", "privacy"),
            "strong: without them clients must use a provider that they may not trust",
        ),
        _follow("H1"),
    ),
    (("weights", "autonomy", "strong: without them clients control less"), _follow("H2")),
    (("weights", "heterogeneity", "limited, indirect: some clients are shut out"), _follow("H8")),
    (("architecture and code", "privacy", _RELIANCE), _follow("H4", "H1", note=_TOGETHER)),
    (("architecture and code", "autonomy", _RELIANCE), _follow("H4", "H2", note=_TOGETHER)),
    (
        ("architecture and code", "heterogeneity", "limited, indirect"),
        _nothing("clients of whom some have the architecture and some do not"),
    ),
    (
        ("licence", "privacy", "none"),
        _follow("H5", note="private tokens are counted by method and by where inference runs"),
    ),
    (("licence", "autonomy", "limits use and redistribution of the tuned model"), _follow("H5")),
    (("licence", "heterogeneity", "a barrier to taking part"), _barrier),
    (
        (
            *("pre-training data", "privacy"),
            "minimal: clients tune on their own data, whatever the base was trained on",
        ),
        _same_disclosure,
    ),
    (("pre-training data", "autonomy", "minimal"), _audit),
    (("pre-training data", "heterogeneity", "minimal"), _own_scores),
)
