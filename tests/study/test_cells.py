"""Runs that several processes share: none is run twice, and none is lost."""

import threading
import time

import pytest

from fedjax_post.integrity import seal_file
from fedjax_post.study import Spec, cells, folder


@pytest.fixture
def ran(monkeypatch):
    """The folders whose runs this process has made; a run is nothing but its summary."""
    found = []

    def carry_out(directory):
        assert not (directory / "summary.json").exists()
        found.append(directory.name)
        finish(directory)

    monkeypatch.setattr(cells, "prepare", lambda spec, *, directory, **given: directory)
    monkeypatch.setattr(cells, "carry_out", carry_out)
    monkeypatch.setattr(cells.comparison, "read_run", lambda directory: directory)
    monkeypatch.setattr(cells.comparison, "describe", str)
    monkeypatch.setattr(cells, "_PAUSE", 0.01)
    return found


def finish(directory):
    (directory / "summary.json").write_text(seal_file({"rounds": 1}))


def planned(tmp_path):
    return [cells.Cell(name, Spec(method="fed_avg"), tmp_path / name) for name in "abc"]


def carry_out_beside(tmp_path, *, until):
    """Carries out the cells while another process holds the first one; returns what was shown."""
    shown = []
    with folder.claim(tmp_path / "a") as mine:
        assert mine
        one = threading.Thread(
            target=cells.carry_out_all, args=[planned(tmp_path)], kwargs={"show": shown.append}
        )
        one.start()
        while one.is_alive() and not any("waiting" in line for line in shown):
            time.sleep(0.01)
        until()
    one.join()
    return shown


def test_a_claim_has_one_holder_and_ends_with_it(tmp_path):
    with folder.claim(tmp_path / "run") as first, folder.claim(tmp_path / "run") as second:
        assert (first, second) == (True, False)
    with folder.claim(tmp_path / "run") as again:
        assert again


def test_what_another_process_runs_is_left_to_it_and_waited_for(ran, tmp_path):
    shown = carry_out_beside(tmp_path, until=lambda: finish(tmp_path / "a"))
    assert ran == ["b", "c"]
    assert shown[0].startswith("1/3  b")
    assert "waiting for 1 runs of other processes" in shown


def test_what_another_process_leaves_unfinished_is_taken_over(ran, tmp_path):
    carry_out_beside(tmp_path, until=lambda: None)
    assert ran == ["b", "c", "a"]


def test_a_run_that_ends_between_two_looks_is_not_repeated(ran, tmp_path, monkeypatch):
    real = folder.claim

    def claim(directory):
        if directory.name == "b" and not (directory / "summary.json").exists():
            directory.mkdir()
            finish(directory)  # by another process
        return real(directory)

    monkeypatch.setattr(cells.folder, "claim", claim)
    cells.carry_out_all(planned(tmp_path), show=lambda line: None)
    assert ran == ["a", "c"]
