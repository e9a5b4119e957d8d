"""The pace of a run: fields without effect, and impossible combinations."""

import pytest

from fedjax_post.study import Spec, Training, pace


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(concurrency=3), "concurrency=3 is for asynchronous runs; give `buffer_size`"),
        (Training(staleness_exponent=1), "staleness_exponent=1.0 is for asynchronous runs"),
        (Training(buffer_size=2, cohort_size=2), "give `concurrency`, not `cohort_size`"),
        (Training(buffer_size=2, sampling="full"), "not `cohort_size` or `sampling`"),
    ],
)
def test_fields_without_effect_are_refused(training, message):
    with pytest.raises(ValueError, match=message):
        pace.check(Spec(training=training))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(buffer_size=2), "which baseline=central cannot be"),
        (Training(client_speeds="lognormal:1"), "has no effect with baseline="),
    ],
)
def test_a_reference_has_no_pace(training, message):
    with pytest.raises(ValueError, match=message):
        pace.check(Spec(training=training).put({"method.baseline": "central"}))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(client_speeds="lognormal:fast"), "client_speeds=lognormal:fast: .*lognormal:1"),
        (Training(client_speeds="lognormal:-1"), "sigma must be finite and at least 0, got -1.0"),
        (Training(client_speeds="nowhere.jsonl"), "nowhere.jsonl"),
        (Training(buffer_size=9), "concurrency=9 must be from 1 to the 4 clients"),
    ],
)
def test_what_cannot_be_is_refused(training, message):
    with pytest.raises((ValueError, OSError), match=message):
        pace.plan_of(Spec(training=training), 4)
