"""Folders of runs: none is shared by accident, and none is left empty."""

import pytest

from fedjax_post import study
from fedjax_post.report.comparison import folder_of
from fedjax_post.study import Spec, folder


def test_two_that_begin_at_once_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder.time, "strftime", lambda form: "now")
    new = lambda: folder.given_or_fresh(None, "ladder")
    with new() as first, new() as second:
        assert [first.name, second.name] == ["now-ladder", "now-ladder-2"]
        assert first.is_dir()
        assert second.is_dir()
        (first / "ladder.json").touch()
        assert folder.unused("ladder").name == "now-ladder-3"  # and is not made
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / first]


def test_a_given_folder_is_left_as_it_is(tmp_path):
    for where in (tmp_path, tmp_path / "new"):
        with folder.given_or_fresh(where, "ladder") as found:
            assert found == where
    assert tmp_path.exists()
    assert not (tmp_path / "new").exists()


def test_a_refused_comparison_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="a: "):
        study.compare({"a": Spec(method="fed_avg", model="nowhere/at-all")})
    assert list(tmp_path.rglob("*-comparison")) == []


def test_a_run_prepared_for_the_folder_of_another_one_does_not_write_there(
    tiny_folder, tiny_rows, tmp_path
):
    spec = Spec(method="fed_avg", model=str(tiny_folder), data=str(tiny_rows)).put(
        {"training.cohort_size": 2, "data.heldout_fraction": 0.25, "adapter.rank": 2}
    )
    first, second = (
        study.prepare(spec.replace(seed=seed), directory=tmp_path / "run") for seed in range(2)
    )
    for _ in range(2):  # a run that was cut before its first round may begin again
        with first.opened():
            pass
    with pytest.raises(FileExistsError, match="holds another run"), second.opened():
        pass
    assert study.read(tmp_path / "run").spec.seed == 0


@pytest.mark.parametrize("name", ["a", "fed_avg", "lr=0.1", "a-b.c"])
def test_a_plain_name_is_that_of_its_folder_in_reports(name):
    assert folder.plain(name) == folder_of(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", ".a", "a.", "a/b", "a b", ".."])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a folder"):
        folder.plain(name)
