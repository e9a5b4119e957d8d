"""The README's code runs as it stands, and what it names exists."""

import json
import re
from pathlib import Path

import pytest

from experiments.flags.define import FLAGS

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, names)
    shown = capsys.readouterr().out.split()
    assert float(shown[0]) == pytest.approx(1, abs=1e-3)
    assert shown[1] == "24"


def test_flags_of_the_table_exist():
    known = {f"--{name}" for name in FLAGS} | {"--flagfile", "--help"}
    named = set(re.findall(r"`(--\w+)", TEXT)) | set(re.findall(r"train (--\w+)", TEXT))
    assert named <= known


def test_keys_of_the_summary_are_documented(finished):
    summary = json.loads((finished / "summary.json").read_text())
    table = TEXT.split("key of `summary.json`")[1].split("## Results")[0]
    for key in summary:
        stem = key.removesuffix("_per_client")
        assert f"`{stem}`" in table, f"{key} is in summary.json and not in the README"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
