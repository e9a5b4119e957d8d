"""The README's code runs as it stands, and what it names exists."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from algorithms import fed_avg
from experiments import flags
from fedjax_post.core import world
from fedjax_post.testing import Case, toy_loss

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_python_block_runs_as_a_module_by_itself(number, tmp_path, monkeypatch, capsys):
    """Nothing that a block before it imported or made is there."""
    (tmp_path / f"readme_block_{number}.py").write_text(BLOCKS[number], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"readme_block_{number}")
    shown = capsys.readouterr().out.split()
    if hasattr(module, "my_fed_avg"):
        check_own(module.my_fed_avg)
    elif number == 0:
        assert float(shown[0]) == pytest.approx(1, abs=1e-3)
        assert shown[1] == "24"
    else:
        assert [int(shown[at]) for at in (0, 3)] == [0, 1]  # round, loss and bytes, twice


def check_own(factory):
    """The algorithm of the README is FedAvg to the bit, and its arguments are given as it says."""
    algorithms = (factory(toy_loss, optax.sgd(0.05)), fed_avg(toy_loss, optax.sgd(0.05)))
    one, other = (Case(algorithm, rounds=3).reference.shared for algorithm in algorithms)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    marks = {name: mark.name for name, mark in world.needs(factory).items()}
    assert marks == {"loss_fn": "LossFn", "client_tx": "ClientTx", "server_lr": "ServerLr"}


def test_annotations_of_the_world_are_named():
    for annotation in world.ANNOTATIONS:
        assert f"`{world.given_by(annotation).name}`" in TEXT


def test_flags_of_the_table_exist():
    known = {f"--{name}" for name in flags.define()} | {"--flagfile", "--help"}
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
