"""The README and the pages run as they stand, and what they name exists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from algorithms import ALGORITHMS
from experiments.flags.define import FLAGS
from fedjax_post.study.factories import own_parameters

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Flags of programs that are of no experiment
_PROGRAMS = {
    *("flagfile", "help", "helpfull", "output_dir", "resume", "spec", "trust_code", "dry_run"),
    *("ask_again", "distributed", "coordinator_address", "num_processes", "process_id"),
    *("algorithms", "seeds", "grid", "methods", "drills", "task", "passport", "what_can_i_run"),
    *("downgrade", "port", "log", "host", "api_key_env", "suite", "only", "table", "tokenizer"),
    *("prompt", "max_new_tokens", "temperature"),
    *("no_deps", "xla_force_host_platform_device_count"),
}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_block_of_the_readme_runs_by_itself(block, tmp_path):
    """As a module in a folder of its own, as somebody who copies it would."""
    (tmp_path / "copied.py").write_text(block)
    command = [sys.executable, "-c", "import copied"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    if "server_lr" in block:
        mean, sent = done.stdout.split()
        assert float(mean) == pytest.approx(1, abs=1e-3)
        assert sent == "24"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_a_page_names_exist(page):
    own = {name for factory in ALGORITHMS.values() for name in own_parameters(factory)}
    known = {*FLAGS, *own, *_PROGRAMS}
    text = page.read_text(encoding="utf-8").replace("--quantise` is", "")
    named = set(re.findall(r"(?<![\w-])--(\w+)", text))
    assert {name for name in named if name.removeprefix("no") not in known} <= known


def test_keys_of_the_summary_are_documented(finished):
    summary = json.loads((finished / "summary.json").read_text())
    text = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    table = text.split("key of `summary.json`")[1]
    for key in summary:
        stem = key.removesuffix("_per_client")
        assert f"`{stem}`" in table, f"{key} is in summary.json and not in docs/records.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
