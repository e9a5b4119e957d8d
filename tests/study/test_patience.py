"""Early stopping: when it stops, that a resumed run stops alike, and what it refuses."""

import itertools
import json
import math

import pytest

from fedjax_post import study
from fedjax_post.report.records import read_records
from fedjax_post.study import Spec, patience


def first_stop(scores, points, *, falls):
    """The number of scores after which training ends, by the definition; None: never."""
    best, since = math.inf, 0
    for number, score in enumerate(scores, 1):
        value = score if falls else -score
        since = 0 if value < best else since + 1
        best = min(best, value)
        if since == points:
            return number
    return None


@pytest.mark.parametrize("falls", [True, False])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_it_stops_once_no_score_was_better_for_so_many_points(falls, points):
    for scores in itertools.product([0.0, 1.0, 2.0], repeat=5):
        over = (n for n in range(1, 6) if patience.is_over(scores[:n], points, falls=falls))
        assert next(over, None) == first_stop(scores, points, falls=falls)


def test_a_score_that_is_not_finite_is_never_better():
    assert patience.is_over([2.0, math.nan, math.nan], 2, falls=True)
    assert patience.is_over([0.5, math.nan], 1, falls=False)
    assert not patience.is_over([math.nan, 2.0], 1, falls=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring.every": 0}, "every=0 makes none; raise it"),
        ({"privacy.noise_multiplier": 1.0}, "scores that the privacy guarantee does not cover"),
        (
            {"scoring.patience": None, "scoring.patience_score": "accuracy"},
            "patience_score=accuracy has no effect without `patience`",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        patience.check(Spec().put({"scoring.patience": 2, **changes}))


def spec_of(model, rows, **changes):
    """A run of at most eight rounds whose step size is too small to change a weight."""
    return Spec(model=str(model), data=str(rows)).put(
        {
            **{"adapter.rank": 2, "method.name": "fed_avg", "method.client_lr": 1e-30},
            "data.heldout_fraction": 0.5,
            **{"training.rounds": 8, "training.sampling": "full", "training.local_steps": 1},
            **{"training.batch_size": 2, "scoring.every": 1, "scoring.patience": 2},
            **{"scoring.exact_match": "off", "scoring.batch_size": 8},
            **changes,
        }
    )


def untimed(records):
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


@pytest.mark.heavy
def test_a_resumed_run_stops_after_the_same_round(tiny_folder, tiny_rows, tmp_path):
    spec = spec_of(tiny_folder, tiny_rows)
    summary = study.carry_out(study.prepare(spec, directory=tmp_path / "whole"))
    whole = read_records(tmp_path / "whole")
    scores = [record["eval_loss"] for record in whole]
    assert len(whole) == first_stop(scores, 2, falls=True) == 3
    assert (summary["stopped"], summary["rounds"]) == (True, len(whole))
    assert [record.get("stopped") for record in whole] == [None] * (len(whole) - 1) + [True]

    job = study.prepare(spec, directory=tmp_path / "cut")
    for state, _ in job.run():
        del state
        break  # after the first round
    study.carry_out(study.prepare(spec, directory=tmp_path / "cut", resume=True))
    assert untimed(read_records(tmp_path / "cut")) == untimed(whole)
    again = study.prepare(spec, directory=tmp_path / "cut", resume=True)
    assert list(again.run()) == []  # it has ended
    found = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert found["final"] == summary["final"]
    with pytest.raises(ValueError, match="scoring.every=2 differs from the run in"):
        study.prepare(spec.put({"scoring.every": 2}), directory=tmp_path / "cut", resume=True)


def test_a_score_that_the_rows_do_not_have_is_refused(tiny_folder, tiny_rows):
    spec = spec_of(tiny_folder, tiny_rows, **{"scoring.patience_score": "preference"})
    with pytest.raises(ValueError, match="patience_score=preference: the held-out rows are not"):
        study.prepare(spec)
    alone = spec_of(tiny_folder, tiny_rows, **{"method.baseline": "local"})
    with pytest.raises(ValueError, match="baseline=local shares no model, so that it has no"):
        study.prepare(alone)
    assert "at most 8 rounds, until loss is no better for 2 points" in str(
        study.prepare(spec_of(tiny_folder, tiny_rows))
    )
