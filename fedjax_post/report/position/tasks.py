"""The page over tasks: the verdicts of several ladders side by side, and what they come to.

from fedjax_post.report import position
print(position.over_tasks(["runs/kinds_mixed", "runs/sst2"], "runs/over_tasks"))
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedjax_post.integrity import seal_file
from fedjax_post.report import markup
from fedjax_post.report.comparison import write_text
from fedjax_post.report.markup import Block, Bullets, Heading, Prose, Table
from fedjax_post.report.position.joint import ALONE, CONTRADICTED, Joint, errors, joint
from fedjax_post.report.position.ladder import Ladder, measure_of, read_ladder
from fedjax_post.report.position.report import COLOURS
from fedjax_post.report.position.tables import distinct
from fedjax_post.report.position.thresholds import ALPHA, TASKS
from fedjax_post.report.position.verdicts import (
    BY_DEFINITION,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    verdicts,
)

NAME = "over_tasks"  # of the files, before the dot
RULE = (
    f"{SUPPORTED}, {NOT_SUPPORTED}: {TASKS.value:.0f} tasks or more decide it, and all that "
    "decide it agree",
    f"{ALONE}: its verdict there is named, and does not count as more",
    f"{CONTRADICTED}: tasks decide it, and contradict each other",
    f"{UNDECIDED}: no task decides it, for the reasons that each of them states",
    f"{BY_DEFINITION}: nothing of it is measured, on any task",
)
NOT_POOLED = (
    "Seeds of different tasks are not pooled. Those of one task vary its split, its clients and "
    "its start, so that their spread says how far its own mean would move, and nothing of other "
    "tasks. Pooled, the seeds of one easy task could decide for all. A mean over tasks would need "
    "tasks that were drawn at random, and an interval over two of them would be useless."
)


def over_tasks(directories: Sequence[str | Path], directory: str | Path) -> str:
    """Writes over_tasks.html, .md and .json into a folder; returns a summary.

    Args:
      directories: those of ladders, two or more, each of another task.
      directory: where the page is written; made if it does not exist.

    Raises:
      FileNotFoundError: if a folder has no ladder.json.
      ValueError: if there are fewer than two, two are of one task, or `read_ladder` refuses one.
    """
    ladders = read_tasks(directories)
    found = joint({task: verdicts(ladder) for task, ladder in ladders.items()})
    title = f"Position over tasks: {', '.join(ladders)}"
    blocks = [Heading(1, title), *_blocks(ladders, found)]
    where = Path(directory)
    where.mkdir(parents=True, exist_ok=True)
    write_text(where / f"{NAME}.md", markup.markdown(blocks))
    write_text(where / f"{NAME}.html", markup.page(title, blocks, where, marked=COLOURS))
    write_text(where / f"{NAME}.json", seal_file(_as_dict(found)))
    return _told(found, where)


def read_tasks(directories: Sequence[str | Path]) -> dict[str, Ladder]:
    """Returns the ladders in some folders, by the name of their task: its title up to a colon.

    Raises:
      FileNotFoundError: if a folder has no ladder.json.
      ValueError: if there are fewer than two, two are of one task, or `read_ladder` refuses one.
    """
    if len(directories) < 2:
        given = ", ".join(map(str, directories)) or "nothing"
        raise ValueError(f"directories must be those of two ladders or more, got {given}; add one")
    found: dict[str, Ladder] = {}
    sources: dict[str, str | Path] = {}
    for path in directories:
        if not (Path(path) / "ladder.json").exists():
            raise FileNotFoundError(
                f"{path}/ladder.json is missing; give folders in which `study.ladder` has written "
                "its report"
            )
        ladder = read_ladder(Path(path))
        task = str(ladder.facts.get("task", "a task")).partition(":")[0]
        if task in found:
            raise ValueError(
                f"directories has two ladders of the task {task!r}, {sources[task]} and {path}; "
                "give one for each task: a second one makes no verdict hold over tasks"
            )
        found[task], sources[task] = ladder, path
    return found


def compared(found: Sequence[Joint]) -> Table:
    """Returns the table of hypotheses against tasks; its last column is the verdict over tasks."""
    tasks = list(found[0].findings)
    rows = [
        (
            f"{one.claim.key}, {one.claim.claim[:1].lower()}{one.claim.claim[1:].rstrip('.')}",
            *(one.findings[task].told for task in tasks),
            one.told,
        )
        for one in found
    ]
    return Table(("hypothesis", *tasks, "over tasks"), rows)


def strength(num_tasks: int) -> str:
    """Returns how strong a verdict over so many tasks is, beside that of one ladder."""
    one, two, apart = (f"{100 * share:.2g} %" for share in errors(num_tasks))
    each = f"{100 * ALPHA.value:g} %"
    return (
        "Holm's correction is over the hypotheses of one ladder, which reads a false verdict in "
        f"at most {each} of cases. Nothing is corrected over tasks: that any of these {num_tasks} "
        f"ladders does has a probability of at most {one}, and more with each task that is tried. "
        "What one task alone decides is therefore weaker here than on that task's own page. A "
        "verdict that holds over tasks is stronger in one sense: if it is false on every task, two "
        f"ladders must have erred at once, in at most {apart} of cases if their errors are "
        f"independent, and in at most {two} whatever they share, such as a base, methods or code. "
        f"It is not stronger in another: that it holds on each task that decides it is false in "
        f"up to {one}. It says nothing of tasks that were not run, or were left out of this page."
    )


def _blocks(ladders: Mapping[str, Ladder], found: Sequence[Joint]) -> list[Block]:
    return [
        Prose("The rule. Each ladder is judged alone, by all rules of its own page. Over tasks:"),
        Bullets(RULE),
        Prose(NOT_POOLED),
        Prose(strength(len(ladders))),
        compared(found),
        Heading(2, "The tasks"),
        Table(
            ("task", "model", "data", "score", "seeds", "in full"),
            [_task(name, ladder) for name, ladder in ladders.items()],
        ),
        Prose(
            "Tasks may differ in their base, clients, budgets and cells too: what differs between "
            "their findings need not follow from the task."
        ),
        Heading(2, "Hypotheses"),
        *(block for one in found for block in _hypothesis(one)),
    ]


def _task(name: str, ladder: Ladder) -> tuple[str, ...]:
    runs = [run for cell in ladder.cells for run in cell.runs.values()]
    return (
        name,
        str(ladder.facts.get("model", "missing")),
        distinct(run.summary.get("dataset") for run in runs),
        measure_of(ladder),
        distinct(sorted({seed for cell in ladder.cells for seed in cell.runs})),
        str(ladder.facts.get("task", "missing")),
    )


def _hypothesis(one: Joint) -> list[Block]:
    found: list[Block] = [
        Heading(3, f"{one.claim.key}. {one.claim.claim.rstrip('.')}: {one.told}"),
        Prose(f"Supported on a task: {one.claim.supported}"),
        Prose(f"Not supported on a task: {one.claim.refuted}"),
    ]
    for task, finding in one.findings.items():
        found.append(Prose(f"On {task}: {finding.told}"))
        if lines := [*finding.numbers, *finding.by_definition]:
            found.append(Bullets(lines))
    return [*found, Prose(f"What would overturn it over tasks: {one.overturned_by}")]


def _told(found: Sequence[Joint], directory: Path) -> str:
    """Returns a summary of the page that fits on a screen."""
    lines = []
    for one in found:
        lines.append(f"{one.claim.key}  {one.told}: {one.claim.claim}")
        if one.verdict != BY_DEFINITION:
            lines += [f"    {task}: {finding.told}" for task, finding in one.findings.items()]
    return "\n".join([*lines, "", f"page       {directory / NAME}.html"])


def _as_dict(found: Sequence[Joint]) -> dict:
    tasks = list(found[0].findings)
    return {
        "rule": list(RULE),
        "errors": errors(len(tasks))._asdict(),
        "tasks": tasks,
        "hypotheses": [
            one.claim._asdict()
            | {"verdict": one.verdict, "told": one.told, "overturned_by": one.overturned_by}
            | {"tasks": {task: f._asdict() for task, f in one.findings.items()}}
            for one in found
        ],
    }
