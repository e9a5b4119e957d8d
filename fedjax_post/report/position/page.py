"""The sections of a position report, from a ladder and its verdicts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_post.report.comparison import interval
from fedjax_post.report.markup import Block, Bullets, Heading, Picture, Prose, Table
from fedjax_post.report.position.aspects import ASPECTS, PROPERTIES, Square
from fedjax_post.report.position.budgets import budget, searched
from fedjax_post.report.position.drills import FORGOTTEN, is_measured, losses
from fedjax_post.report.position.gains import gains
from fedjax_post.report.position.hypotheses import METHOD
from fedjax_post.report.position.ladder import Ladder, measure_of
from fedjax_post.report.position.leaks import leaks
from fedjax_post.report.position.rules import gate, numbers, p_value, percent, points
from fedjax_post.report.position.stages import stages
from fedjax_post.report.position.tables import (
    controlled,
    distinct,
    provenance,
    reached,
    thresholds,
)
from fedjax_post.report.position.verdicts import (
    BY_DEFINITION,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Verdict,
)

_SENTENCES, _LETTERS = 3, 300  # at most so many in a cell of the matrix, so that it is read
CAPTIONS = {
    "position_tiers.png": "Score by tier of access, most closed first: the mean over the "
    "seeds, its 95 % interval, and each seed as a tick. A closed-side score that cannot be read, "
    "since the base was not shown to follow prompts, is hollow.",
    "position_queries.png": "Score against rows asked of the target. Lines are means over "
    "the seeds on the rows that are scored during training, symbols the final scores with their "
    "95 % intervals; methods that ask nothing have none.",
    "position_costs.png": "Score against private tokens that a provider sees or would see, "
    "and against bytes on the wire. Blue: with the weights; orange: without; grey: baselines.",
}


def blocks(
    ladder: Ladder, judged: Sequence[Verdict], squares: Sequence[Square], pictures: Sequence[str]
) -> list[Block]:
    """Returns the report.

    Args:
      ladder: the measurements.
      judged: the verdicts on H1 to H9.
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
        Heading(2, "Search of settings"),
        *searched(ladder),
        Heading(2, "Controls"),
        *controlled(ladder),
        Heading(2, "Gains"),
        *gains(ladder),
        Heading(2, "Hypotheses"),
        Prose(METHOD),
        *(block for verdict in judged for block in _hypothesis(verdict)),
        Heading(2, "Thresholds"),
        *thresholds(),
        Heading(2, "Drills"),
        *_drills(ladder),
        Heading(2, "What each party recovers"),
        *leaks(ladder),
        Heading(2, "Other stages"),
        *stages(ladder),
        Heading(2, "What was run"),
        *provenance(ladder),
        Heading(2, "Limits"),
        Bullets(_limits(ladder)),
    ]


def title_of(ladder: Ladder) -> str:
    """Returns the task, the model, and the data if all runs have the same."""
    model = ladder.facts.get("model", "a model that ladder.json does not name")
    runs = [run for cell in ladder.cells for run in cell.runs.values()]
    data = {run.summary.get("dataset") for run in runs}
    told = f", {data.pop()}" if len(data) == 1 and None not in data else ""
    return f"{ladder.facts.get('task', 'a task')} on {model}{told}"


def _pictures(names: Sequence[str], drawn: Sequence[str]) -> list[Block]:
    found = [Picture(name, CAPTIONS[name]) for name in names if name in drawn]
    return [*found] if found else [_missing("pictures, for want of scored cells")]


def _summary(ladder: Ladder, judged: Sequence[Verdict]) -> list[Block]:
    counted = Counter(verdict.finding.verdict for verdict in judged)
    order = (SUPPORTED, NOT_SUPPORTED, UNDECIDED, BY_DEFINITION)
    told = ", ".join(f"{counted[v]} {v}" for v in order)
    return [
        Prose(
            "Agrawal, Mayer and Mertel (arXiv:2505.23593) argue that black-box models contradict "
            "the principles of federated learning. Their argument has no experiments; here it is "
            "held against one task, run with the same clients at every tier of access. The "
            f"hypotheses: {told}. Every number is read from the files of the runs; what is not "
            "there is said to be missing. What is so by definition is no evidence."
        ),
        Prose(f"Whether this base can be prompted: {gate(ladder).told}."),
        Table(
            ("hypothesis", "claim", "seeds", "p", "level", "power", "verdict"),
            [_line(verdict) for verdict in judged],
        ),
        Prose(
            "p is that of the verdict which the contrast is nearest to, and level what Holm's "
            "correction asks of it; power is for a true difference of five points."
        ),
    ]


def _line(verdict: Verdict) -> tuple[str, ...]:
    claim, found = verdict
    shown = lambda value: "" if value is None else f"{value:.2g}"
    seeds = str(found.num_seeds) if found.num_seeds else ""
    p = "" if found.p is None else p_value(found.p).removeprefix("= ")
    numbers = (p, shown(found.level), shown(found.power))
    return (claim.key, claim.claim, seeds, *numbers, found.told)


def _matrix(squares: Sequence[Square]) -> list[Block]:
    by = {(square.aspect, square.property): square for square in squares}
    short = [
        (aspect, *(by[aspect, property].finding.verdict for property in PROPERTIES))
        for aspect in ASPECTS
    ]
    told = [
        (f"{one.aspect}, {one.property}", one.claim, _basis(one), one.finding.told)
        for one in squares
    ]
    return [
        Prose(
            "Four aspects of openness against three properties; whether what the paper claims of "
            "a cell is borne out. A cell that reads 'by definition' or 'not measured' reads so "
            "whatever the data are. 'See H1' points to that hypothesis below, which has all "
            "numbers of the cell, and what is so by definition."
        ),
        Table(("aspect", *PROPERTIES), short),
        Table(("cell", "the paper", "measured here, or by definition", "verdict"), told),
    ]


def _basis(square: Square) -> str:
    """Returns what a cell of the matrix rests on, as a few short sentences.

    Lists that the section of its hypothesis has are left out.
    """
    finding, key = square.finding, square.hypothesis
    lines = list(finding.numbers) if key else [*finding.numbers, *finding.by_definition]
    del lines[_SENTENCES:]
    while len(lines) > 1 and sum(map(len, lines)) > _LETTERS:
        lines.pop()
    told = [*lines, *([f"see {key}"] if key else [])]
    return " ".join(f"{line[:1].upper()}{line[1:]}." for line in told)


def _hypothesis(verdict: Verdict) -> list[Block]:
    claim, finding = verdict
    found: list[Block] = [
        Heading(3, f"{claim.key}. {claim.claim.rstrip('.')}: {finding.told}"),
        Prose(f"The paper: {claim.paper}"),
        Prose(f"Supported: {claim.supported}"),
        Prose(f"Not supported: {claim.refuted}"),
        Prose(f"Measured: {claim.measured or 'nothing.'}"),
    ]
    if finding.numbers:
        found.append(Bullets(finding.numbers))
    if claim.defined:
        found.append(Prose(f"By definition, no evidence: {claim.defined}"))
    if finding.by_definition:
        found.append(Bullets(finding.by_definition))
    return [*found, Prose(f"Not shown: {claim.limits}")]


def _drills(ladder: Ladder) -> list[Block]:
    rows = [*(ladder.facts.get("drills") or []), *(ladder.facts.get("excluded") or [])]
    if not rows:
        return [_missing("drills")]
    kinds = {name: cell.kind for cell in ladder.cells for name in (cell.method, cell.label)}
    head = ("drill", "method", "rounds", "score before", f"loss of {measure_of(ladder)}", "counts",
            "can train", "can serve", "note")  # fmt: skip
    return [
        Prose(
            "Drills are runs of their own, so that their scores need not be those of the ladder. "
            f"'Score before' is the {measure_of(ladder)} of the same run without the fault: on all "
            "held-out rows, or on those of the clients who are shut out."
        ),
        Table(head, [_drill(row, kinds.get(str(row.get("method")), "")) for row in rows]),
    ]


def _drill(row: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    able = {True: "yes", False: "no", None: "missing"}
    before = numbers(row.get("before"))
    return (
        str(row.get("drill")),
        str(row.get("method")),
        distinct(numbers(row.get("rounds"))),
        percent(interval(before) if before else None),
        points(losses(row)),
        _counts(row, kind),
        able.get(row.get("can_train"), "missing"),
        able.get(row.get("can_serve"), "missing"),
        str(row.get("note") or ""),
    )


def _counts(row: Mapping[str, Any], kind: str) -> str:
    if not is_measured(row, kind):
        return "by definition"
    return "measured, for the table of stages" if row.get("drill") == FORGOTTEN else "measured"


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
        f"Scores are the simulator's view: {measure_of(ladder)} on held-out rows, by a model held "
        "here, for all tiers alike. Scoring is not counted as queries.",
        "Intervals are over seeds alone: the split, the cohorts, the batches and the start.",
        "The matrix is Table 1 of the paper, condensed; the hypotheses are our reading of it.",
    ]


def _missing(what: str) -> Prose:
    return Prose(f"Missing: {what}.")
