"""A folder of drills belongs to one experiment, one choice of settings and one process."""

import pytest

from fedjax_post import study
from fedjax_post.study import drill_folder, folder
from fedjax_post.study.faults import Settings, fill_settings
from fedjax_post.study.resolve import resolve

SPEC = resolve(study.Spec(method="fed_avg").put({"training.rounds": 4}))
SETTINGS = fill_settings(Settings(), 4)


@pytest.fixture
def claimed(tmp_path):
    drill_folder.claim(tmp_path, SPEC, SETTINGS)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at_round", 1),
        ("rate_limit", 2),
        ("refused_client", 3),
        ("excluded_clients", 5),
        ("change", 0.2),
        ("next_version", "builtin"),
        ("least_memory", 3.0),
        ("most_memory", 3.0),
        ("weights_licence", "MIT"),
    ],
)
def test_another_setting_does_not_get_the_results_of_the_last_one(claimed, name, value):
    message = f"{name}={value} differs from the drills in .*, which have .*; give that to continue"
    with pytest.raises(ValueError, match=message):
        drill_folder.claim(claimed, SPEC, SETTINGS._replace(**{name: value}))
    drill_folder.claim(claimed, SPEC, SETTINGS)


@pytest.mark.parametrize(
    ("at_round", "rounds", "message"),
    [
        (None, 1, "training.rounds=1 leaves no round at which a fault could begin"),
        (4, 4, "at_round=4 must be from 1 to 3, before the last of `training.rounds=4`"),
    ],
)
def test_a_fault_begins_between_the_first_and_the_last_round(at_round, rounds, message):
    with pytest.raises(ValueError, match=message):
        fill_settings(Settings(at_round=at_round), rounds)
    assert fill_settings(Settings(), 2).at_round == 1


def test_what_changes_no_run_may_differ(claimed):
    told = SETTINGS._replace(own_examples=0, passport="olmo-2", data_licence="MIT", measure="loss")
    drill_folder.claim(claimed, SPEC.put({"scoring.batch_size": 3}), told)


def test_another_experiment_is_refused_as_a_resumed_run_would_be(claimed):
    with pytest.raises(ValueError, match="training.batch_size=3 differs from the run in"):
        drill_folder.claim(claimed, SPEC.put({"training.batch_size": 3}), SETTINGS)
    with pytest.raises(ValueError, match="training.rounds=5 differs from the run in"):
        drill_folder.claim(claimed, SPEC.put({"training.rounds": 5}), SETTINGS)


def test_drills_whose_settings_nobody_has_recorded_are_not_taken_over(claimed):
    (claimed / drill_folder.SETTINGS).unlink()
    with pytest.raises(ValueError, match="of an earlier version, .*; remove it to run them again"):
        drill_folder.claim(claimed, SPEC, SETTINGS)


def test_a_second_start_leaves_the_folder_to_the_first(tiny_folder, tiny_rows, tmp_path):
    spec = study.Spec(method="fed_avg").put(
        {
            "model.name": str(tiny_folder),
            "data.source": str(tiny_rows),
            "data.template": "{instruction} ->",
            "adapter.rank": 2,
            "training.rounds": 2,
            "training.cohort_size": 2,
        }
    )
    own = tmp_path / "one" / "seed-0"
    own.mkdir(parents=True)
    with folder.hold(own), pytest.raises(BlockingIOError, match="written to by another process"):
        study.drills({"one": spec}, chosen=("shutdown",), directory=tmp_path, show=str)
    assert [path.name for path in own.iterdir()] == [".held"]
