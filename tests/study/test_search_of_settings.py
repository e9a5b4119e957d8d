"""Settings are searched with as many trials for each method, and never on a reported seed."""

import pytest

from fedjax_post.study import Rung, Spec, search
from fedjax_post.study.search import Search, Setting

RUNGS = {"lora": Rung(Spec(method="fed_avg"), "open"), "bdpl": Rung(Spec(method="bdpl"), "closed")}
STEPS = [Setting({"client_lr": x}, {"method.client_lr": x}) for x in (0.1, 0.2, 0.3, 0.4)]
GIVEN = Search({"lora": STEPS, "bdpl": STEPS[:3]}, trials=2, seed=100)


def test_every_method_has_as_many_trials_of_different_settings(tmp_path):
    found = search.plan(GIVEN, RUNGS, tmp_path)
    for name, trials in found.items():
        steps = [trial.cell.spec.method.client_lr for trial in trials]
        assert len(set(steps)) == GIVEN.trials
        assert {trial.setting.told["client_lr"] for trial in trials} == set(steps)
        assert {trial.cell.spec.seed for trial in trials} == {100}
        assert all(trial.cell.directory.parent == tmp_path / "search" / name for trial in trials)


def test_the_seed_decides_what_is_tried(tmp_path):
    told = lambda seed: [
        trial.setting.told
        for trial in search.plan(GIVEN._replace(seed=seed), RUNGS, tmp_path)["lora"]
    ]
    assert told(100) == told(100)
    assert len({str(told(seed)) for seed in range(100, 120)}) > 2


def test_without_a_search_all_stays_as_it_is(tmp_path):
    found = search.best(Search(), RUNGS, tmp_path, measure="exact_match", show=print)
    assert (found.rungs, found.record) == (RUNGS, {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (GIVEN._replace(seed=1), "search.seed=1 is one of the seeds that are reported"),
        (GIVEN._replace(trials=4), "search.trials=4 must be from 1 to 3, the settings of bdpl"),
        (GIVEN._replace(trials=0), "search.trials=0 must be from 1 to 4"),
        (Search({"sgd": STEPS}, trials=1), "search names sgd, which is none of lora, bdpl"),
    ],
)
def test_a_bad_search_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        search.check(given, RUNGS, seeds=(0, 1))


def test_trials_without_the_measure_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(search.cells, "carry_out_all", lambda planned, **how: None)
    monkeypatch.setattr(search, "read_summary", lambda directory: {"final": {"loss": 1.0}})
    with pytest.raises(ValueError, match="lora, trial 1: measure=accuracy is none of the final"):
        search.best(GIVEN, RUNGS, tmp_path, measure="accuracy", show=print)
