"""Laws of the table of facts: it is complete, and the library agrees with it."""

import datetime
import json

import pytest

from fedjax_post.hub.facts import CHECKPOINTS
from fedjax_post.hub.families import FAMILIES
from fedjax_post.hub.files import BUILTIN, find_folder
from fedjax_post.hub.load import load_model, num_parameters


@pytest.mark.parametrize("row", CHECKPOINTS, ids=lambda row: row.name)
def test_every_row_is_whole(row):
    assert row.name
    assert row.model_type in FAMILIES
    assert row.architecture
    for fact in (row.parameters, row.licence):
        assert fact.value
        assert fact.source
        datetime.date.fromisoformat(fact.date)
    assert isinstance(row.parameters.value, int) or row.parameters.value == "unknown"


def test_names_are_unique_and_every_family_has_a_checkpoint():
    names = [row.name for row in CHECKPOINTS]
    assert len(set(names)) == len(names)
    assert {row.model_type for row in CHECKPOINTS} == set(FAMILIES)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_builtin_model_is_as_its_row_says(name):
    row = next(row for row in CHECKPOINTS if row.name == name)
    raw = json.loads((find_folder(name) / "config.json").read_text())
    assert [row.architecture] == raw["architectures"]
    assert row.model_type == raw["model_type"]
    assert num_parameters(load_model(name)) == row.parameters.value


def test_architectures_are_those_of_transformers():
    """The classes that its causal language models have, by model_type."""
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    known = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    for row in CHECKPOINTS:
        assert known[row.model_type] == row.architecture
