"""Audits of privacy: closed forms of the bound, and federations whose epsilon is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logit
from scipy.stats import beta

import fedjax_post
from fedjax_post.algorithms import fed_avg
from fedjax_post.attacks import (
    canary_scores,
    draw_canaries,
    greatest_bound,
    lower_bound,
    with_canaries,
)
from fedjax_post.attacks.audit import direction
from fedjax_post.data.batches import ArrayClients
from fedjax_post.privacy import private

NUM_CLIENTS, SIZE, CLIP = 96, 2048, 0.5
CANARIES = draw_canaries(NUM_CLIENTS, 64, seed=0)
LIKE = {"x": jnp.zeros(SIZE)}


def loss_fn(params, model, batch, key):
    loss = 0.5 * jnp.mean((params["x"][None, :4] - batch["x"]) ** 2)
    return loss, {"loss": loss}


def change_of(noise_multiplier, rounds=2):
    """What a private federation releases in the end, less what it began with."""
    arrays = [{"x": np.full((2, 4), k % 5 - 2, np.float32)} for k in range(NUM_CLIENTS)]
    clients = ArrayClients(arrays, batch_size=2, local_steps=1)
    base = private(
        fed_avg(loss_fn, optax.sgd(0.5)),
        clip_norm=CLIP,
        noise_multiplier=noise_multiplier,
        cohort_size=NUM_CLIENTS,
        seed=3,
    )
    algorithm = with_canaries(base, CANARIES, num_clients=NUM_CLIENTS, length=CLIP)
    plan = fedjax_post.Plan(sampler=fedjax_post.full(), seed=0)
    run = fedjax_post.run(algorithm, None, clients, params=LIKE, rounds=rounds, plan=plan)
    *_, (state, _) = run
    return state.shared


def test_half_of_the_canaries_are_present_by_coin():
    many = draw_canaries(20_000, 10_000, seed=1)
    assert len(set(many.ids)) == 10_000
    assert abs(many.present.mean() - 0.5) < 0.02
    for bad in (15, 20_001):
        with pytest.raises(ValueError, match=f"from 16 to the 20000 clients, got {bad}"):
            draw_canaries(20_000, bad, seed=1)


def test_directions_have_their_length_and_are_nearly_orthogonal():
    sent = [direction(LIKE, 0, jnp.int32(k), CLIP)["x"] for k in range(8)]
    cosines = np.array(sent) @ np.array(sent).T / CLIP**2
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-5)
    assert np.abs(cosines - np.eye(8)).max() < 6 / np.sqrt(SIZE)


def test_without_noise_each_present_canary_is_found_in_what_is_released():
    """The release is the mean of what was sent, so its part in a direction is rounds clip / n."""
    scores = canary_scores(change_of(0.0), CANARIES)
    expected = np.where(CANARIES.present, 2 * CLIP / NUM_CLIENTS, 0)
    # other canaries' directions overlap by 1 / sqrt(SIZE) each
    assert np.abs(scores - expected).max() < 0.7 * 2 * CLIP / NUM_CLIENTS
    assert scores[CANARIES.present].min() > scores[~CANARIES.present].max()


def test_the_coin_of_a_client_that_is_no_canary_changes_nothing():
    nobody = CANARIES._replace(ids=CANARIES.ids[:0], present=CANARIES.present[:0])
    base = fed_avg(loss_fn, optax.sgd(0.5))
    algorithm = with_canaries(base, nobody, num_clients=NUM_CLIENTS, length=CLIP)
    arrays = [{"x": np.full((2, 4), k, np.float32)} for k in range(3)]
    clients = ArrayClients(arrays, batch_size=2, local_steps=1)
    plan = fedjax_post.Plan(sampler=fedjax_post.full())
    ends = [
        list(fedjax_post.run(each, None, clients, params=LIKE, rounds=1, plan=plan))[-1][0].shared
        for each in (base, algorithm)
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize(("correct", "wrong"), [(40, 0), (32, 8)])
def test_the_bound_is_a_binomial_tail_in_closed_form(correct, wrong):
    """Without delta, an epsilon is refuted if so many right guesses have a chance below 5 % / 4.

    The chance of a right guess is at most e^epsilon / (1 + e^epsilon), so that the bound is the
    logit of the lower limit of Clopper and Pearson.
    """
    pytest.importorskip("jax_privacy.auditing")
    scores = np.arange(80.0)[::-1]
    present = np.arange(80) < correct
    found = lower_bound(scores, present, delta=1e-12)
    limits = [beta.ppf(0.05 / 4, right, n - right + 1) for n, right in _guesses(correct)]
    assert found.epsilon == pytest.approx(logit(max(limits)), abs=1e-4)
    if not wrong:
        assert found.epsilon == pytest.approx(logit((0.05 / 4) ** (1 / 40)), abs=1e-4)


def _guesses(correct):
    return [(n, min(n, correct)) for n in (40, 20, 10, 5)]


def test_a_bound_is_far_above_zero_without_noise():
    pytest.importorskip("jax_privacy.auditing")
    found = lower_bound(canary_scores(change_of(0.0), CANARIES), CANARIES.present, delta=1e-5)
    assert found.epsilon > 1
    assert (found.canaries, found.present) == (64, int(CANARIES.present.sum()))


@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_a_bound_is_not_above_the_account(noise):
    pytest.importorskip("jax_privacy.auditing")
    accounting = pytest.importorskip("dp_accounting")
    event = accounting.SelfComposedDpEvent(accounting.GaussianDpEvent(noise), 2)
    epsilon = accounting.pld.PLDAccountant().compose(event).get_epsilon(1e-5)
    found = lower_bound(canary_scores(change_of(noise), CANARIES), CANARIES.present, delta=1e-5)
    assert found.epsilon <= epsilon


def test_a_large_delta_explains_every_right_guess():
    pytest.importorskip("jax_privacy.auditing")
    found = [greatest_bound(CANARIES, delta=delta) for delta in (1e-9, 1e-5, 1e-2)]
    right = min(int(CANARIES.present.sum()), 32)
    assert found[0] == pytest.approx(logit(beta.ppf(0.05 / 4, right, 32 - right + 1)), abs=1e-3)
    assert found[0] >= found[1] > 1
    assert found[2] == 0


def test_scores_that_say_nothing_bound_nothing():
    pytest.importorskip("jax_privacy.auditing")
    rng = np.random.default_rng(0)
    refuted = [
        lower_bound(rng.normal(size=200), rng.random(200) < 0.5, delta=1e-6).epsilon > 0
        for _ in range(100)
    ]
    assert np.mean(refuted) <= 0.05


def test_wrong_numbers_are_refused():
    scores, present = np.zeros(20), np.arange(20) < 10
    for name, value in (("delta", 0.0), ("confidence", 1.0)):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            lower_bound(scores, present, **{"delta": 1e-5, name: value})
    with pytest.raises(ValueError, match="canaries of both kinds"):
        lower_bound(scores, np.ones(20, bool), delta=1e-5)
