"""The paper's matrix: four aspects of openness against three properties of federated learning.

The claims are those of Table 1 of arXiv:2505.23593, condensed. A cell is measured, or it is so by
definition, or no run bears on it; which of the three does not depend on the data. Licence and
heterogeneity, which no hypothesis covers, is judged apart, at alpha without correction.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fedjax_post.report.position.ladder import Ladder
from fedjax_post.report.position.measured import licence_barrier
from fedjax_post.report.position.verdicts import (
    BY_DEFINITION,
    Finding,
    Verdict,
    judge,
)

ASPECTS = ("weights", "architecture and code", "licence", "pre-training data")
PROPERTIES = ("privacy", "autonomy", "heterogeneity")
NOT_MEASURED = "not measured"


class Square(NamedTuple):
    """One cell of the matrix."""

    aspect: str
    property: str
    claim: str  # of the paper, condensed
    finding: Finding
    hypothesis: str = ""  # the key of the one that it rests on, whose section has all numbers


class _Cell(NamedTuple):
    """The basis of a cell: a hypothesis, a drill by licence, a definition, or nothing."""

    aspect: str
    property: str
    claim: str
    basis: str  # a key of a measured hypothesis, BY_DEFINITION or NOT_MEASURED, or "licence"
    told: str = ""


_TOGETHER = (
    "Tiers of access contain each other (H4), and weights and architecture come together in them: "
    "neither was opened alone"
)
_RELIANCE = "yes: fewer ways of use, more reliance on the provider"
_CELLS = (
    _Cell(
        *("weights", "privacy"),
        "strong: without them clients must use a provider that they may not trust",
        "H1",
    ),
    _Cell("weights", "autonomy", "strong: without them clients control less", "H2"),
    _Cell("weights", "heterogeneity", "limited, indirect: some clients are shut out", "H8"),
    _Cell("architecture and code", "privacy", _RELIANCE, BY_DEFINITION, _TOGETHER),
    _Cell("architecture and code", "autonomy", _RELIANCE, BY_DEFINITION, _TOGETHER),
    _Cell(
        *("architecture and code", "heterogeneity", "limited, indirect", NOT_MEASURED),
        "it needs clients of whom some have the architecture and some do not",
    ),
    _Cell(
        *("licence", "privacy", "none", BY_DEFINITION),
        "no licence enters the ledger of what is disclosed (H5)",
    ),
    _Cell(
        *("licence", "autonomy", "limits use and redistribution of the tuned model"),
        BY_DEFINITION,
        "it is read in the terms (H5)",
    ),
    _Cell("licence", "heterogeneity", "a barrier to taking part", "licence"),
    _Cell(
        *("pre-training data", "privacy"),
        "minimal: clients tune on their own data, whatever the base was trained on",
        BY_DEFINITION,
        "what a method sends depends on the method, and not on what its base was trained on",
    ),
    _Cell(
        *("pre-training data", "autonomy", "minimal", BY_DEFINITION),
        "only an open corpus can be searched for the evaluation's rows (H6)",
    ),
    _Cell(
        *("pre-training data", "heterogeneity", "minimal", NOT_MEASURED),
        "it needs each client's own score on two bases",
    ),
)


def matrix(ladder: Ladder, judged: Sequence[Verdict]) -> list[Square]:
    """Returns the twelve cells, ordered by aspect.

    Args:
      ladder: the ladder.
      judged: its `verdicts`.
    """
    by = {verdict.claim.key: verdict.finding for verdict in judged}
    apart = judge({"licence": licence_barrier(ladder)})
    return [
        Square(
            *(cell.aspect, cell.property, cell.claim),
            by.get(cell.basis) or apart.get(cell.basis) or _unmeasured(cell),
            cell.basis if cell.basis in by else "",
        )
        for cell in _CELLS
    ]


def _unmeasured(cell: _Cell) -> Finding:
    return Finding(cell.basis, "", [], [cell.told])
