"""The position report of a ladder: the paper's claims, and the measurements.

    from fedjax_post.report import position
    print(position.write("runs/ladder"))

It is made only from the run folders and `ladder.json`, see `fedjax_post.report.position.ladder`.
"""

from collections.abc import Sequence
from pathlib import Path

from fedjax_post.integrity import seal_file
from fedjax_post.report import markup
from fedjax_post.report.comparison import write_text
from fedjax_post.report.position import page, plots
from fedjax_post.report.position.aspects import Square, matrix
from fedjax_post.report.position.hypotheses import METHOD
from fedjax_post.report.position.ladder import Ladder, accuracy, read_ladder
from fedjax_post.report.position.rules import gate, percent
from fedjax_post.report.position.thresholds import THRESHOLDS
from fedjax_post.report.position.verdicts import (
    BY_DEFINITION,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Verdict,
    verdicts,
)

COLOURS = {  # of the frame around a verdict
    NOT_SUPPORTED: "#D55E00",
    SUPPORTED: "#0072B2",
    UNDECIDED: "#888888",
    BY_DEFINITION: "#888888",
}
_DRAWN = {
    "position_tiers.png": plots.draw_tiers,
    "position_queries.png": plots.draw_queries,
    "position_costs.png": plots.draw_costs,
}


def write(directory: str | Path) -> str:
    """Writes position.html, .md, .json and pictures into a ladder's folder; returns a summary.

    The HTML file contains the pictures; the Markdown file links to them.

    Raises:
      FileNotFoundError: if the folder has no ladder.json.
      ValueError: if `read_ladder` refuses that file.
    """
    directory = Path(directory)
    ladder = read_ladder(directory)
    judged = verdicts(ladder)
    squares = matrix(ladder, judged)
    drawn = [name for name, draw in _DRAWN.items() if draw(ladder, directory / name)]
    blocks = page.blocks(ladder, judged, squares, drawn)
    title = f"Position report: {page.title_of(ladder)}"
    write_text(directory / "position.md", markup.markdown(blocks))
    write_text(directory / "position.html", markup.page(title, blocks, directory, marked=COLOURS))
    found = seal_file(_as_dict(ladder, judged, squares))
    write_text(directory / "position.json", found)
    return _told(ladder, judged, directory)


def _told(ladder: Ladder, judged: Sequence[Verdict], directory: Path) -> str:
    """Returns a summary of the report that fits on a screen."""
    width = max((len(cell.label) for cell in ladder.cells), default=0)
    lines = [
        f"{cell.label.ljust(width)}  {cell.tier:10}  {percent(accuracy(cell))}"
        for cell in ladder.cells
    ]
    lines += ["", f"gate  {gate(ladder).told}", ""]
    lines += [f"{v.claim.key}  {v.finding.told}: {v.claim.claim}" for v in judged]
    return "\n".join([*lines, "", f"report     {directory / 'position.html'}"])


def _as_dict(ladder: Ladder, judged: Sequence[Verdict], squares: Sequence[Square]) -> dict:
    return {
        "gate": gate(ladder)._asdict(),
        "method": METHOD,
        "thresholds": [
            {"name": one.name, "value": one.value, "history": [c._asdict() for c in one.history]}
            for one in THRESHOLDS
        ],
        "hypotheses": [verdict.claim._asdict() | verdict.finding._asdict() for verdict in judged],
        "matrix": [
            {name: value for name, value in s._asdict().items() if name != "finding"}
            | s.finding._asdict()
            for s in squares
        ],
    }
