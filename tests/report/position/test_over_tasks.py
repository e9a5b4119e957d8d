"""Verdicts over tasks: two that agree make one, one alone does not, and none is pooled."""

import json

import numpy as np
import pytest
from ladders import CLOSED, OPEN, write_ladder

from fedjax_post.report import position
from fedjax_post.report.position import noise
from fedjax_post.report.position.joint import ALONE, CONTRADICTED, errors, joint
from fedjax_post.report.position.measured import MEASURES
from fedjax_post.report.position.tasks import strength
from fedjax_post.report.position.verdicts import (
    BY_DEFINITION,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    verdicts,
)

NOISE, PRO, CON = noise.WORLDS


def read(*worlds, draws, seed=0):
    """What made-up ladders of these worlds, one a task, come to: by hypothesis, a list of draws."""
    rng = np.random.default_rng(seed)
    found = {}
    for _ in range(draws):
        judged = {f"task {n}": verdicts(noise.ladder(world, rng)) for n, world in enumerate(worlds)}
        for one in joint(judged):
            found.setdefault(one.claim.key, []).append(one)
    return found


def share(found, key, verdict):
    return np.mean([one.verdict == verdict for one in found[key]])


def test_noise_on_two_tasks_is_undecided():
    found = read(NOISE, NOISE, draws=60)
    assert all(share(found, key, UNDECIDED) >= 0.9 for key in MEASURES)


@pytest.mark.parametrize(("world", "verdict"), [(PRO, SUPPORTED), (CON, NOT_SUPPORTED)])
def test_two_tasks_that_agree_make_a_verdict(world, verdict):
    found = read(world, world, draws=20)
    assert all(share(found, key, verdict) >= 0.9 for key in MEASURES)


@pytest.mark.parametrize("worlds", [(PRO, CON), (PRO, PRO, CON)])
def test_tasks_that_contradict_each_other_are_said_to(worlds):
    found = read(*worlds, draws=20)
    assert all(share(found, key, CONTRADICTED) >= 0.9 for key in MEASURES)


@pytest.mark.parametrize(("world", "verdict"), [(PRO, SUPPORTED), (CON, NOT_SUPPORTED)])
def test_one_task_alone_is_named_and_counts_as_no_more(world, verdict):
    found = read(world, NOISE, draws=20)
    for key in MEASURES:
        assert share(found, key, ALONE) >= 0.9
        told = [one.told for one in found[key] if one.verdict == ALONE]
        assert set(told) == {f"{ALONE}: {verdict} on task 0"}


def test_what_is_by_definition_stays_so():
    found = read(PRO, CON, draws=1)
    assert {key for key in found if share(found, key, BY_DEFINITION)} == {"H4", "H5"}


def test_an_undecided_task_takes_no_verdict_from_two_that_agree():
    found = read(PRO, NOISE, PRO, draws=10)
    assert all(share(found, key, SUPPORTED) >= 0.9 for key in MEASURES)


def test_what_is_on_no_task_is_found_over_tasks_in_fewer_cases_than_two_that_err_at_once():
    """Nothing is ahead; seeds spread so little that each ladder finds its absence, or errs."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(60):
        drawn = {name: verdicts(noise.known(0.0, 0.01, rng)) for name in "ab"}
        read = {one.claim.key: one.verdict for one in joint(drawn)}
        wrong += any(read[key] == SUPPORTED for key in MEASURES if key not in ("H1", "H6"))
    assert wrong <= 1


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 7])
def test_errors_are_those_of_ladders_that_each_keep_to_alpha(num_tasks):
    rng = np.random.default_rng(0)
    apart = (rng.uniform(size=(200_000, num_tasks)) < 0.05).sum(axis=1)
    found = errors(num_tasks)
    assert found.two_independent == pytest.approx((apart >= 2).mean(), abs=0.002)
    assert (apart >= 1).mean() <= found.one + 0.002
    pairs = np.repeat(rng.uniform(size=200_000) < 0.05 * num_tasks / 2, 2)  # they err in pairs
    assert pairs.mean() == pytest.approx(found.two, abs=0.003)
    assert found.two_independent <= found.two <= found.one


def test_the_page_says_how_strong_a_verdict_over_tasks_is():
    assert "a probability of at most 15 %" in strength(3)
    assert "at most 0.73 % of cases if their errors are independent" in strength(3)
    assert "at most 7.5 % whatever they share" in strength(3)


@pytest.fixture
def folders(tmp_path):
    for name in ("kinds", "SST-2"):
        write_ladder(tmp_path / name, [OPEN, CLOSED], task=f"{name}: a question")
    return [tmp_path / "kinds", tmp_path / "SST-2"]


@pytest.fixture
def page(folders, tmp_path):
    told = position.over_tasks(folders, tmp_path / "new" / "folder")
    return told, tmp_path / "new" / "folder"


def test_the_page_has_each_task_s_finding_and_the_rule(page):
    told, folder = page
    text = (folder / "over_tasks.md").read_text()
    assert "\n| hypothesis | kinds | SST-2 | over tasks |\n" in text
    assert "Seeds of different tasks are not pooled." in text
    assert text.index("The rule.") < text.index("| H1, black-box")
    assert text.count("On kinds: ") == text.count("On SST-2: ") == 9
    assert text.count("What would overturn it over tasks: ") == 9
    assert len(told.splitlines()) < 40
    assert (folder / "over_tasks.html").read_text().count("<h3>") == 9


def test_the_file_has_what_the_page_has(page):
    found = json.loads((page[1] / "over_tasks.json").read_text())
    assert found["tasks"] == ["kinds", "SST-2"]
    assert [one["key"] for one in found["hypotheses"]] == [f"H{n}" for n in range(1, 10)]
    assert all(set(one["tasks"]) == {"kinds", "SST-2"} for one in found["hypotheses"])


def test_two_ladders_of_one_task_are_not_two_tasks(folders, tmp_path):
    write_ladder(tmp_path / "again", [OPEN], task="kinds: the same question on another base")
    with pytest.raises(ValueError, match="two ladders of the task 'kinds', .*; give one"):
        position.over_tasks([*folders, tmp_path / "again"], tmp_path / "out")
    with pytest.raises(ValueError, match="two ladders or more, got .*kinds; add one"):
        position.over_tasks(folders[:1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finding_that_is_named_decides_nothing_by_its_numbers():
    """A p of one task lends nothing to another: findings alone count."""
    near = Finding(UNDECIDED, "too few seeds", [], [], p=0.01, level=0.005)
    base = verdicts(noise.ladder(NOISE, np.random.default_rng(0)))
    judged = [one._replace(finding=near) for one in base]
    assert {one.verdict for one in joint({"a": judged, "b": judged})} == {UNDECIDED}
