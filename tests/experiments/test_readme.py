"""The README and the pages of docs/ run without changes, and what they name exists."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from fedjax_post.algorithms import ALGORITHMS, fed_avg
from fedjax_post.core import world
from fedjax_post.experiments.benchmark import options
from fedjax_post.experiments.flags.define import FLAGS
from fedjax_post.study.factories import own_parameters
from fedjax_post.testing import Case, toy_loss

ROOT = Path(__file__).parent.parent.parent
# docs/site has what Sphinx alone reads
_DOCS = [p for p in (ROOT / "docs").rglob("*.md") if "site" not in p.relative_to(ROOT).parts]
PAGES = sorted([*ROOT.glob("*.md"), *_DOCS])
README = (ROOT / "README.md").read_text(encoding="utf-8")
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)  # ```py is another library's
BLOCKS = _PYTHON.findall(README)
WITH_BLOCKS = [page for page in _DOCS if _PYTHON.search(page.read_text(encoding="utf-8"))]
# Flags of programs that are of no experiment
_PROGRAMS = {
    *("flagfile", "help", "helpfull", "output_dir", "resume", "spec", "trust_code", "dry_run"),
    *("ask_again", "distributed", "coordinator_address", "num_processes", "process_id"),
    *("algorithms", "seeds", "grid", "methods", "drills", "task", "passport", "what_can_i_run"),
    *("downgrade", "over", "port", "log", "host", "api_key_env", "price_training"),
    *("prompt", "max_new_tokens", "temperature", "tasks", "num_fewshot", "limit"),
    *("output", "public", "adversary", "attack", "num_steps"),
    *("least_memory", "most_memory", "next_version", "weights_licence"),
    *("no_deps", "xla_force_host_platform_device_count", "heads", "dist"),
}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.heavy
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


@pytest.mark.heavy
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_one_program(page, tmp_path):
    """In order, in a folder of its own, as somebody who follows the page would."""
    blocks = _PYTHON.findall(page.read_text(encoding="utf-8"))
    (tmp_path / "followed.py").write_text("\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-c", "import followed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_algorithm_of_the_readme_is_fed_avg(tmp_path, monkeypatch):
    """To the bit, and its arguments are given as it says."""
    (block,) = [block for block in BLOCKS if "def my_fed_avg" in block]
    (tmp_path / "readme_algorithm.py").write_text(block.split("\ndef loss_fn")[0])
    monkeypatch.syspath_prepend(tmp_path)
    factory = importlib.import_module("readme_algorithm").my_fed_avg
    algorithms = (factory(toy_loss, optax.sgd(0.05)), fed_avg(toy_loss, optax.sgd(0.05)))
    one, other = (Case(algorithm, rounds=3).reference.shared for algorithm in algorithms)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    marks = {name: mark.name for name, mark in world.needs(factory).items()}
    assert marks == {"loss_fn": "LossFn", "client_tx": "ClientTx", "server_lr": "ServerLr"}


def test_annotations_of_the_world_are_named():
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    for annotation in world.ANNOTATIONS:
        assert f"`{world.given_by(annotation).name}`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_a_page_names_exist(page):
    own = {name for factory in ALGORITHMS.values() for name in own_parameters(factory)}
    known = {*FLAGS, *own, *_PROGRAMS, *options.define()}
    text = page.read_text(encoding="utf-8").replace("--quantise` is", "")
    text = re.sub(r"(pip install|vllm serve|tensorboard )[^`\n]*", "", text)
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
