"""Every malformed file gives one line that names it: never a traceback, a hang or a crash."""

import random

import pytest
from damage import attempt, make


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    return place, make(place)


@pytest.mark.parametrize("name", ["model", "sharded", "adapter", "soft", "words", "tokenizer"])
def test_a_damaged_file_is_named_in_one_line(folders, tmp_path, name):
    place, loads = folders
    rng = random.Random(name)
    tried = [attempt(loads[name], place / name, tmp_path / "copy", rng) for _ in range(16)]
    assert [told for what, told in tried if what not in ("loaded", "refused")] == []
    assert any(what == "refused" for what, _ in tried)
