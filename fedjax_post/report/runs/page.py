"""One HTML page about some runs, made only from their folders.

    from fedjax_post import report
    report.write(["runs/a", "runs/b"], "report.html")

The page includes its pictures and needs nothing else: it can be sent, printed and read on a phone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fedjax_post.report import markup
from fedjax_post.report.comparison import write_text
from fedjax_post.report.holdings import NAME as HOLDINGS
from fedjax_post.report.holdings import draw_holdings
from fedjax_post.report.markup import Block, Bullets, Heading, Picture, Prose
from fedjax_post.report.runs import origin, plots, sections
from fedjax_post.report.runs.folders import Experiment, read_experiments
from fedjax_post.report.scatter import readable
from fedjax_post.report.table import SCORES

_MOST_HOLDINGS = 4  # pictures of who holds what
_BANDS = "Lines are means over the seeds, at the rounds that all of them have; bands are 95 %."


def write(folders: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Writes one self-contained HTML page about some runs, and returns its path.

    Args:
      folders: of runs, or of comparisons, whose runs are then meant. Runs that differ only in
        their seed are one experiment. A run need not have ended.
      path: of the page; by default `report.html` in the folder, or of several folders in the
        current one.

    Raises:
      FileNotFoundError: if a folder contains no run.
      DamagedError: naming a file that has changed since it was written.
      ValueError: if an experiment has two runs with the same seed.
    """
    experiments = read_experiments(folders)
    if path is None:
        path = Path(folders[0]) / "report.html" if len(folders) == 1 else Path("report.html")
    title = f"Report: {', '.join(readable(one.label) for one in experiments)}"
    with TemporaryDirectory() as scratch:
        blocks = [Heading(1, title), *_blocks(experiments, Path(scratch))]
        text = markup.page(title, blocks, Path(scratch), marked={})
    write_text(Path(path), text)
    return Path(path)


def _blocks(experiments: Sequence[Experiment], scratch: Path) -> Iterator[Block]:
    yield from _opening(experiments)
    yield Heading(2, "Scores")
    yield from sections.scores(experiments)
    yield from sections.tasks(experiments)
    yield Heading(2, "Learning curves")
    drawn = plots.draw_learning(experiments, scratch / "curves.png")
    solid = "Training is dashed, held out is solid." if len(experiments) > 1 else ""
    caption = f"Training and held-out scores by round. {_BANDS} {solid}".strip()
    yield _picture("curves.png", caption, drawn, "learning curves")
    yield Heading(2, "Utility against bytes")
    drawn = plots.draw_utility(experiments, scratch / "utility.png")
    caption = "Final scores over the bytes sent by and to all clients, with 95 % intervals."
    yield _picture("utility.png", caption, drawn, "bytes; no run that has ended sends any")
    yield Heading(2, "Time, memory and bytes")
    yield from sections.costs(experiments)
    yield Heading(2, "Who holds what")
    yield from _holdings(experiments, scratch)
    yield Heading(2, "Scores by client")
    yield from _clients(experiments, scratch)
    yield Heading(2, "Aggregation error and drift")
    drawn = plots.draw_entries(experiments, scratch / "telemetry.png", plots.TELEMETRY)
    caption = f"The simulator's view of the clients' messages, as docs/records.md defines. {_BANDS}"
    yield _picture("telemetry.png", caption, drawn, "telemetry of the messages")
    yield Heading(2, "Privacy")
    yield from sections.entries(experiments, "privacy", "epsilon; no run is differentially private")
    if plots.draw_entries(experiments, scratch / "epsilon.png", plots.EPSILON):
        yield Picture("epsilon.png", f"Epsilon spent by round. {_BANDS}")
    yield from sections.entries(experiments, "secure_sum", "secure sums; no run uses them")
    yield Heading(2, "Disclosure")
    yield from sections.entries(experiments, "disclosure", "disclosure")
    yield from sections.uses(experiments)
    yield Heading(2, "Attacks")
    yield from sections.attacks(experiments)
    yield Heading(2, "Settings")
    yield from origin.settings(experiments)
    yield Heading(2, "How it was made")
    yield from origin.origin(experiments)
    yield from origin.folders(experiments)
    yield Heading(2, "Files that are missing")
    gaps = origin.gaps(experiments)
    yield Bullets(gaps) if gaps else Prose("None.")


def _opening(experiments: Sequence[Experiment]) -> Iterator[Block]:
    runs = sum(len(one.runs) for one in experiments)
    ended = sum(len(one.ended) for one in experiments)
    yield Prose(
        f"{_count(len(experiments), 'experiment')}, {_count(runs, 'run')}, {ended} of them ended. "
        "Every number is read from files that the runs wrote. Scores are the simulator's view; "
        "privacy guarantees do not cover them."
    )
    if warned := origin.warnings(experiments):
        yield Prose("Warnings of the runs:")
        yield Bullets(warned)


def _holdings(experiments: Sequence[Experiment], scratch: Path) -> Iterator[Block]:
    """Yields a picture and a table for each division of the rows; equal ones are shown once."""
    distinct: dict[str, tuple[list[str], dict]] = {}
    for one in experiments:
        if found := one.any.holdings:
            names, _ = distinct.setdefault(repr(found), ([], found))
            names.append(readable(one.label))
    if not distinct:
        yield sections.missing(f"who holds what; no run has {HOLDINGS}")
    for number, (names, content) in enumerate(list(distinct.values())[:_MOST_HOLDINGS]):
        file = f"holdings-{number}.png"
        draw_holdings(content, scratch / file)
        groups = f"divided by {content['by']}" if content.get("by") else ""
        yield Picture(file, f"Rows of each client, {groups}. {'; '.join(names)}.")
        yield from sections.holdings(content)
    if (more := len(distinct) - _MOST_HOLDINGS) > 0:
        yield Prose(f"{_count(more, 'further division')} of the rows left out.")
    if any(len(one.runs) > 1 for one in experiments):
        yield Prose("Other seeds divide the rows differently where the partition is drawn.")


def _clients(experiments: Sequence[Experiment], scratch: Path) -> Iterator[Block]:
    titles = {
        "shared": "shared model",
        "personal": "personal models",
        "heldout": "held-out clients",
    }
    for table, title in titles.items():
        file = f"clients-{table}.png"
        if plots.draw_clients(experiments, scratch / file, table):
            names = f"{SCORES['loss']} and other scores"
            yield Picture(file, f"{title.capitalize()}: {names} over the clients of all seeds.")
    yield from sections.spreads(experiments)


def _picture(name: str, caption: str, drawn: bool, what: str) -> Block:
    return Picture(name, caption) if drawn else sections.missing(what)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"
