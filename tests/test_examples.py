"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest
from test_laws import ROOT, SOURCES

WITH_EXAMPLES = [path for path in SOURCES if ">>> " in path.read_text()]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedjax_post" else ("fedjax_post", *parts)
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_examples_print_what_they_say(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(importlib.import_module(name_of(path)), optionflags=flags)
    assert found.attempted > 0
    assert found.failed == 0
