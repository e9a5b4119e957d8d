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


PROMPTS = {
    "manual_prompt": Rung(Spec(method="manual_prompt"), "baseline"),
    "manual_2": Rung(Spec(method="manual_prompt"), "control", control="manual"),
    "proxy_alone": Rung(Spec(method="fed_avg"), "control", control="proxy"),
}


def test_manual_prompts_are_scored_once_on_the_seed_of_the_search(tmp_path, monkeypatch):
    given = search.plan(GIVEN, RUNGS | PROMPTS, tmp_path)
    assert {name: len(trials) for name, trials in given.items()} == {
        "lora": 2,
        "bdpl": 2,
        "manual_prompt": 1,
        "manual_2": 1,
    }
    assert given["manual_2"][0].cell.spec == PROMPTS["manual_2"].spec.replace(seed=100)
    assert search.plan(Search(), RUNGS | PROMPTS, tmp_path) == {}
    monkeypatch.setattr(search.cells, "carry_out_all", lambda planned, **how: None)
    monkeypatch.setattr(
        search, "read_summary", lambda path: {"final": {"exact_match": len(path.parent.name)}}
    )
    found = search.best(GIVEN, RUNGS | PROMPTS, tmp_path, measure="exact_match", show=print)
    assert found.record["prompts"] == {"manual_prompt": 13.0, "manual_2": 8.0}
    assert set(found.record["cells"]) == set(RUNGS)
    assert {name: found.rungs[name] for name in PROMPTS} == PROMPTS


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
