"""The sections of a position report, from a ladder and its verdicts."""

from collections import Counter
from collections.abc import Sequence

from fedjax_post.report.markup import Block, Bullets, Heading, Picture, Prose, Table
from fedjax_post.report.position.aspects import ASPECTS, PROPERTIES, Square
from fedjax_post.report.position.claims import SPREAD
from fedjax_post.report.position.ladder import Ladder
from fedjax_post.report.position.rules import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    gate,
    losses,
    points,
)
from fedjax_post.report.position.tables import budget, distinct, provenance, reached
from fedjax_post.report.position.verdicts import Verdict

CAPTIONS = {
    "position_tiers.png": "Exact match by tier of access, most closed first: the mean over the "
    "seeds, its 95 % interval, and each seed as a tick. A closed-side score that cannot be read, "
    "since the base was not shown to follow prompts, is hollow.",
    "position_queries.png": "Exact match against rows asked of the target. Lines are means over "
    "the seeds on the rows that are scored during training, symbols the final scores with their "
    "95 % intervals; methods that ask nothing have none.",
    "position_costs.png": "Exact match against private tokens that a provider sees or would see, "
    "and against bytes on the wire. Blue: with the weights; orange: without; grey: baselines.",
}


def blocks(
    ladder: Ladder, judged: Sequence[Verdict], squares: Sequence[Square], pictures: Sequence[str]
) -> list[Block]:
    """Returns the report.

    Args:
      ladder: the measurements.
      judged: the verdicts on H1 to H8.
      squares: the paper's matrix.
      pictures: names of the pictures that were drawn.
    """
    tiers, *costs = CAPTIONS
    return [
        Heading(1, f"Position report: {title_of(ladder)}"),
        *_summary(ladder, judged),
        Heading(2, "The paper's matrix"),
        *_matrix(squares),
        Heading(2, "The ladder"),
        *_pictures([tiers], pictures),
        *reached(ladder),
        Heading(2, "What it costs"),
        *_pictures(costs, pictures),
        *budget(ladder),
        Heading(2, "Hypotheses"),
        Prose(SPREAD),
        *(block for verdict in judged for block in _hypothesis(verdict)),
        Heading(2, "Drills"),
        *_drills(ladder),
        Heading(2, "What was run"),
        *provenance(ladder),
        Heading(2, "Limits"),
        Bullets(_limits(ladder)),
    ]


def title_of(ladder: Ladder) -> str:
    """Returns the task and the model."""
    model = ladder.facts.get("model", "a model that ladder.json does not name")
    return f"{ladder.facts.get('task', 'a task')} on {model}"


def _pictures(names: Sequence[str], drawn: Sequence[str]) -> list[Block]:
    found = [Picture(name, CAPTIONS[name]) for name in names if name in drawn]
    return [*found] if found else [_missing("pictures, for want of scored cells")]


def _summary(ladder: Ladder, judged: Sequence[Verdict]) -> list[Block]:
    counted = Counter(verdict.finding.verdict for verdict in judged)
    told = ", ".join(f"{counted[v]} {v}" for v in (SUPPORTED, NOT_SUPPORTED, UNDECIDED))
    return [
        Prose(
            "Agrawal, Mayer and Mertel (arXiv:2505.23593) argue that black-box models contradict "
            "the principles of federated learning. Their argument has no experiments; here it is "
            "held against one task, run with the same clients at every tier of access. Of eight "
            f"hypotheses: {told}. Every number is read from the files of the runs; what is not "
            "there is said to be missing."
        ),
        Prose(f"Whether this base can be prompted: {gate(ladder).told}."),
        Table(
            ("hypothesis", "claim", "verdict"),
            [(v.claim.key, v.claim.claim, v.finding.verdict) for v in judged],
        ),
    ]


def _matrix(squares: Sequence[Square]) -> list[Block]:
    by = {(square.aspect, square.property): square for square in squares}
    short = [
        (aspect, *(by[aspect, property].finding.verdict for property in PROPERTIES))
        for aspect in ASPECTS
    ]
    told = [
        (
            f"{square.aspect}, {square.property}",
            square.claim,
            "; ".join(square.finding.numbers),
            square.finding.verdict,
        )
        for square in squares
    ]
    return [
        Prose(
            "Four aspects of openness against three properties; whether what the paper claims of "
            "a cell is borne out. 'Supported' where it claims no or little effect means that "
            "little was found."
        ),
        Table(("aspect", *PROPERTIES), short),
        Table(("cell", "the paper", "measured here", "verdict"), told),
    ]


def _hypothesis(verdict: Verdict) -> list[Block]:
    claim, finding = verdict
    found: list[Block] = [
        Heading(3, f"{claim.key}. {claim.claim.rstrip('.')}: {finding.verdict}"),
        Bullets(finding.numbers),
        Prose(f"Rule: {claim.rule}"),
        Prose(f"Not shown: {claim.limits}"),
    ]
    if finding.verdict == UNDECIDED:
        found.append(Prose(f"What would decide it: {claim.needed}."))
    return found


def _drills(ladder: Ladder) -> list[Block]:
    rows = [*(ladder.facts.get("drills") or []), *(ladder.facts.get("excluded") or [])]
    if not rows:
        return [_missing("drills")]
    able = {True: "yes", False: "no", None: "missing"}
    lost = lambda row: points(losses(row)) if losses(row) else "missing"
    head = ("drill", "method", "loss of exact match", "can train", "can serve", "note")
    return [
        Table(
            head,
            [
                (
                    str(row.get("drill")),
                    str(row.get("method")),
                    lost(row),
                    able.get(row.get("can_train"), "missing"),
                    able.get(row.get("can_serve"), "missing"),
                    str(row.get("note") or ""),
                )
                for row in rows
            ],
        )
    ]


def _limits(ladder: Ladder) -> list[str]:
    runs = [run for cell in ladder.cells for run in cell.runs.values()]
    differ = [
        f"The cells differ in their {name}: {distinct(run.summary.get(name) for run in runs)}."
        for name in ("model", "dataset", "heldout_examples", "commit")
        if len({str(run.summary.get(name)) for run in runs}) > 1
    ]
    uneven = {tuple(cell.runs) for cell in ladder.cells if cell.runs}
    if len(uneven) > 1:
        differ.append("Not every cell has the same seeds; differences are over those in common.")
    return [
        *differ,
        "One task and one base. A larger base, another task or another split can turn any verdict "
        "that rests on a score.",
        "Scores are the simulator's view: greedy answers on held-out rows, made on a model held "
        "here, for all tiers alike. Scoring is not counted as queries.",
        "Intervals are over seeds alone: the split, the cohorts, the batches and the start. With "
        "few seeds they are wide, and many comparisons on one ladder make an accident likelier.",
        "The matrix is Table 1 of the paper, condensed; the hypotheses are our reading of it.",
    ]


def _missing(what: str) -> Prose:
    return Prose(f"Missing: {what}.")
