"""Ranks at a provider: those of the model itself where it answers; else decided by bounds alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.evaluate.bounds import rank_by_bounds
from fedjax_post.evaluate.choices import find_choices
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.scores import measure, score

EOS = 1
LABELS = [[10], [11], [12]]
PROMPTS = [[2, 3, 20, 4], [2, 21, 22, 4], [2, 4], [2, 3, 25, 26, 4], [2, 5, 4], [2, 27, 4]]
NULL = (2, 4)
UNKNOWN = None


def decode(ids):
    return " ".join(map(str, ids))


def heldout_of(make, labels=LABELS, **settings):
    table = make(list(zip(PROMPTS, [*labels, *labels], strict=True)), **settings)
    texts = tuple(map(decode, labels))
    choices = find_choices(
        (table,), eos_id=EOS, decode_fn=decode, encode_fn=lambda text: [], labels=texts
    )
    form = {"exact_match": False, "choices": choices, "loss": False, "batch_size": 4}
    return HeldOut(table, np.arange(6), decode, EOS, **form)


class Told:
    """A hosted model that returns given log-probabilities, and `most` where it returns none."""

    def __init__(self, told, most=-5.0):
        self._told, self._most, self.asked = told, most, []

    def next_bounds(self, params, prompts, prompt_mask, candidates, *, prefix=()):
        rows = [
            (*np.asarray(prefix).tolist(), *ids[kept].tolist())
            for ids, kept in zip(np.asarray(prompts), np.asarray(prompt_mask), strict=True)
        ]
        self.asked += rows
        told = np.array([self._told(row) for row in rows], np.float64)  # None is NaN
        least = np.where(np.isnan(told), -np.inf, told)
        return jnp.asarray(least), jnp.asarray(np.where(np.isnan(told), self._most, told))


def ranks_of(make, told, **settings):
    return rank_by_bounds(Told(told), {}, heldout_of(make, **settings)).shares


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ((-1.0, -2.0, -3.0), {"accuracy": [1, 0, 0], "undecided": 0}),
        ((-1.0, UNKNOWN, UNKNOWN), {"accuracy": [1, 0, 0], "undecided": 0}),
        ((UNKNOWN, UNKNOWN, -5.0), {"accuracy": [0, 0, 1], "undecided": 0}),  # none is more likely
        ((-2.0, -2.0, -3.0), {"accuracy": [1, 0, 0], "undecided": 0}),  # a tie, as without a host
        ((UNKNOWN, UNKNOWN, UNKNOWN), {"accuracy": [0, 0, 0], "undecided": 1}),
    ],
)
def test_a_label_is_first_if_no_other_can_exceed_it(make, told, found):
    shares = ranks_of(make, lambda row: told)
    assert shares["accuracy"].tolist() == shares["accuracy_per_token"].tolist()
    assert shares["accuracy"].tolist() == found["accuracy"] * 2
    assert shares["accuracy_undecided"].tolist() == [found["undecided"]] * 6


@pytest.mark.parametrize(
    ("given", "prior", "first"),
    [
        ((-1.0, -2.0, -3.0), (-1.0, -4.0, -3.0), 1),  # gains of 0, 2 and 0
        ((-1.0, -2.0, UNKNOWN), (-4.0, -4.0, -3.0), 0),  # the last one gains at most -2
        ((-1.0, -2.0, UNKNOWN), (-1.0, -2.0, -9.0), -1),  # it may gain 4
        ((-1.0, -2.0, -3.0), (-4.0, -4.0, UNKNOWN), -1),  # it may have been as unlikely as any
        ((UNKNOWN, UNKNOWN, UNKNOWN), (-1.0, -2.0, -9.0), -1),
    ],
)
def test_calibration_is_decided_by_the_bounds_of_both_prompts(make, given, prior, first):
    shares = ranks_of(make, lambda row: prior if row == NULL else given)
    ranked = [0, 1, 3, 4, 5]  # the third row is the null prompt itself
    right = np.array([0, 1, 2, 0, 1, 2])[ranked] == first
    assert shares["accuracy_pmi"][ranked].tolist() == right.tolist()
    assert shares["accuracy_pmi_undecided"][ranked].tolist() == [first < 0] * 5


def test_each_ranked_row_is_asked_once_and_the_null_prompt_once_more(make):
    for settings in ({}, {"prefix": (2,)}, {"room": 5}):
        model = Told(lambda row: (-1.0, -2.0, -3.0))
        heldout = heldout_of(make)._replace(**settings)
        found = rank_by_bounds(model, {}, heldout).shares["accuracy"]
        kept = [tuple(ids) for ids in PROMPTS if settings.get("room") is None or len(ids) < 5]
        assert sorted(model.asked) == sorted([*kept, NULL])
        assert np.isnan(found).sum() == 6 - len(kept)


def test_nothing_is_asked_where_no_row_is_ranked(make):
    model = Told(lambda row: (-1.0, -2.0, -3.0))
    assert score(model, {}, heldout_of(make, cut=range(6))) == {}
    assert model.asked == []


def test_losses_of_a_hosted_model_stay_unknown(make):
    found = measure(Told(lambda row: (-1.0, -2.0, -3.0)), {}, heldout_of(make))
    assert found.losses is None
    assert np.isnan(rank_by_bounds(Told(lambda row: (0, 0, 0)), {}, heldout_of(make)).nats).all()


def test_labels_of_several_tokens_are_refused(make):
    with pytest.raises(ValueError, match="choices have up to 2 tokens"):
        rank_by_bounds(Told(lambda row: ()), {}, heldout_of(make, labels=[[10], [11, 13], [12]]))
