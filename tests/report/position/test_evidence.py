"""Ladders that were run: docs/results.md says what their evidence gives by the present rules."""

import re
import tarfile

import pytest
from ladders import ARCHIVES, DOCS, EVIDENCE

from fedjax_post.report.markup import Table, markdown
from fedjax_post.report.position.budgets import spent_of
from fedjax_post.report.position.joint import joint
from fedjax_post.report.position.ladder import (
    MEASURES,
    accuracy,
    calibrated,
    measure_of,
    read_ladder,
)
from fedjax_post.report.position.stages import stages
from fedjax_post.report.position.tasks import compared, read_tasks
from fedjax_post.report.position.verdicts import verdicts

BY_RANK = MEASURES["accuracy"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder of each archive's ladder, by the archive's path."""
    found = {path: tmp_path_factory.mktemp(path.name.partition(".")[0]) for path in EVIDENCE}
    for path, folder in found.items():
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return found


def test_every_archive_is_named_on_the_page():
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert all(f"(evidence/{path.name})" in text for path in ARCHIVES)
    assert EVIDENCE


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.name.partition(".")[0])
def test_the_page_says_what_the_evidence_gives(path, unpacked):
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    _, _, rest = text.partition(f"(evidence/{path.name})")
    section = re.split(r"\n##+ ", rest)[0]
    told = dict(re.findall(r"^\| (H\d)[^|]*\| \*\*([^*]+)\*\*", section, re.M))
    ladder = read_ladder(unpacked[path])
    found = {one.claim.key: one.finding for one in verdicts(ladder)}
    assert set(told) == set(found)
    for key, finding in found.items():
        assert finding.told.startswith(told[key]), (key, finding.told)
    for cell in ladder.cells:
        if cell.kind != "control" and cell.method != "manual_prompt":  # prompts have one row
            score, spent = accuracy(cell), spent_of(cell)
            scores = [score, *([calibrated(cell)] if measure_of(ladder) == BY_RANK else [])]
            numbers = "".join(f"{100 * one.mean:.1f} ± {100 * one.half:.1f} | " for one in scores)
            numbers += f"{spent.mean:,.0f} |"
            assert f"| {cell.label} | {cell.tier} | {numbers}" in text, (cell.label, numbers)
    for cell in ladder.longer.values():
        assert f"| {100 * accuracy(cell).mean:.1f} % |" in text, cell.label


def test_the_page_has_the_verdicts_over_all_tasks(unpacked):
    """`python -m experiments.openness --over=...` writes this table into over_tasks.md."""
    section = (DOCS / "results.md").read_text(encoding="utf-8").partition("\n## Over tasks\n")[2]
    ladders = read_tasks(list(unpacked.values()))
    found = joint({task: verdicts(ladder) for task, ladder in ladders.items()})
    assert markdown([compared(found)]) in section.partition("\n## ")[0]


def test_the_page_has_the_stages_of_the_first_ladder(unpacked):
    """The section's two tables are those of the report, by capability and what the sides cost."""
    section = (DOCS / "results.md").read_text(encoding="utf-8").partition("\n### Other stages\n")[2]
    (folder,) = [where for path, where in unpacked.items() if path.name.startswith("kinds_mixed")]
    tables = [block for block in stages(read_ladder(folder)) if isinstance(block, Table)]
    assert len(tables) == 2
    for table in tables:
        assert markdown([table]) in section.partition("\n### ")[0]
