"""Ladders that were run: docs/results.md says what their evidence gives by the present rules."""

import re
import tarfile
from pathlib import Path

import pytest

from fedjax_post.report.position.ladder import read_ladder
from fedjax_post.report.position.verdicts import verdicts

DOCS = Path(__file__).parents[3] / "docs"
KEPT = sorted((DOCS / "evidence").glob("*.tar.xz"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name.partition(".")[0])
def test_the_page_says_what_the_evidence_gives(path, tmp_path):
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    _, begun, rest = text.partition(f"(evidence/{path.name})")
    assert begun, f"docs/results.md does not name {path.name}"
    told = dict(re.findall(r"^\| (H\d)[^|]*\| \*\*([^*]+)\*\*", rest.partition("\n## ")[0], re.M))
    found = {one.claim.key: one.finding for one in verdicts(read_ladder(tmp_path))}
    assert set(told) == set(found)
    for key, finding in found.items():
        assert finding.told.startswith(told[key]), (key, finding.told)
