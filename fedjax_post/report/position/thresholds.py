"""Every number that a verdict depends on, with the date and the reason of each of its changes.

The first ladders were run and read on 2026-11-22 between 17:43 and 19:03, and are those of
docs/results.md. A threshold dated later, or at 18:07 or 18:27 of that day, was set by people who
knew their outcome. `set_blind` says so for each.
"""

from typing import NamedTuple


class Change(NamedTuple):
    """A value of a threshold, from a date on."""

    date: str  # YYYY-MM-DD
    value: float
    reason: str
    set_blind: bool  # whether no ladder had been run when it was set


class Threshold(NamedTuple):
    """A number that verdicts depend on, and its history."""

    name: str
    unit: str
    meaning: str
    history: tuple[Change, ...]  # oldest first

    @property
    def value(self) -> float:
        """The value that is in force."""
        return self.history[-1].value


MARGIN = Threshold(
    "margin",
    "score",
    "an advantage below it counts as none",
    (Change("2026-11-22", 0.02, "two points: less is not worth a choice of method", True),),
)
ALIKE = Threshold(
    "alike",
    "score",
    "two bases whose tuned scores differ by less count as equal",
    (Change("2026-11-22", 0.05, "five points: the gain whose power is printed", True),),
)
RARE = Threshold(
    "rare",
    "share of evaluation rows",
    "contamination surely above it makes scores unreadable for H6",
    (
        Change("2026-11-22", 0.01, "one row in a hundred, as evidence on H6", True),
        Change(
            "2026-11-29",
            0.01,
            "a condition of reading, and no evidence: the audit reads a sample of the corpus, and "
            "its result followed from the size of that sample",
            False,
        ),
        Change(
            "2026-11-30",
            0.01,
            "the whole corpus is searched, for all rows that are scored; a sample decides nothing",
            False,
        ),
    ),
)
CEILING = Threshold(
    "ceiling",
    "score",
    "a contrast of which both sides reach it shows no difference",
    (
        Change("2026-11-22", 0.98, "both sides of H3 had reached it on the first ladder", False),
        Change("2026-11-29", 0.98, "counts for each contrast, and not for a whole ladder", False),
    ),
)
PROMPTED = Threshold(
    "prompted",
    "score",
    "the manual prompt must be this far above the commonest answer",
    (Change("2026-11-22", 0.15, "a base that ignores prompts says nothing of them", True),),
)
RECOVERED = Threshold(
    "recovered",
    "share of LoRA's gain",
    "a soft prompt that is trained by gradients, or the best manual prompt, must recover it",
    (
        Change("2026-11-22", 0.5, "a base that prompts do not move says nothing of them", True),
        Change(
            "2026-11-30",
            0.5,
            "the best manual prompt counts too: on SST-2 it moves SmolLM2 more than LoRA does, and "
            "the soft prompt learned with one of three seeds; no verdict depends on it",
            False,
        ),
    ),
)
LEAST_GAIN = Threshold(
    "least gain",
    "score",
    "LoRA must gain it, or a share of its gain means nothing",
    (Change("2026-11-22", 0.05, "a share of 4 of a gain of one point had passed", False),),
)
ALPHA = Threshold(
    "alpha",
    "probability",
    "of one false verdict or more among the measured hypotheses of a ladder, at most",
    (
        Change("2026-11-22", 0.05, "for each hypothesis alone", True),
        Change("2026-11-29", 0.05, "for all together, by Holm's correction", False),
    ),
)
GAIN = Threshold(
    "gain",
    "score",
    "the true difference whose power is printed beside each verdict",
    (Change("2026-11-29", 0.05, "five points, a difference that a user notices", False),),
)
POWER = Threshold(
    "power",
    "probability",
    "with less, a verdict reads: too few seeds",
    (
        Change(
            "2026-11-29",
            0.5,
            "three seeds with a spread of five points find a gain of five in 18 of 100 cases",
            False,
        ),
        Change(
            "2026-12-01",
            0.5,
            "at the level of one contrast where all of them must show that there is no advantage: "
            "their number corrects a choice among them, and nothing is chosen there",
            False,
        ),
    ),
)
BEST_OF = Threshold(
    "best of",
    "prompts",
    "so many manual prompts must have been tried, the best of which counts",
    (
        Change("2026-11-29", 10, "searches try many prompts; one by hand is no rival", False),
        Change(
            "2026-12-01",
            10,
            "the best is chosen on the seed of the search, where there is one: other seeds' rows, "
            "by which it had been chosen, are reported",
            False,
        ),
    ),
)
BUDGET = Threshold(
    "budget",
    "share of the budget",
    "a cell whose spending differs by more is marked; H3 and H9 are undecided if that helps the "
    "side that is ahead",
    (Change("2026-11-30", 0.15, "a round more or less of the longest visits", False),),
)
TASKS = Threshold(
    "tasks",
    "ladders",
    "so many must decide a hypothesis alike, or it is decided on one task alone",
    (
        Change(
            "2026-12-01",
            2,
            "each ladder may read a false verdict in 5 % of cases, so that one among several is no "
            "evidence over tasks; two must err at once",
            False,
        ),
    ),
)
THRESHOLDS = (
    *(MARGIN, ALIKE, RARE, CEILING, PROMPTED, RECOVERED),
    *(LEAST_GAIN, ALPHA, GAIN, POWER, BEST_OF, BUDGET, TASKS),
)
